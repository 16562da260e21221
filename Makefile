# make demo   the weights in the repository on a photograph, then a training on generated rooms: no GPU, no data set
# make test   lint and tests, the same that CI runs; make coverage tells also which lines they run
# make media  the pictures of the README, from the networks named below
# make gpu    on a machine with a GPU: tests, speed and a training, results in runs/gpu
# make fuzz   coverage-guided fuzzing of the readers, minutes
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
SHIPPED = model/nyudv2_lite0.safetensors
ROOMS ?= runs/demo/best.pt
JOINT ?= runs/camvid_redkitchen/best.pt
INDOOR ?= runs/replica_redkitchen/best.pt
PHOTO ?= dataset/nyudv2/rgb/000996.jpg

.PHONY: demo test coverage quick media gpu fuzz audit clean

demo: $(VENV)/installed
	$(BIN)/python inference.py --checkpoint $(SHIPPED) --output predictions
	@echo "Look at predictions/photo_overview.jpg. Now a training of some minutes:"
	rm -rf runs/demo
	$(BIN)/python train.py --run runs/demo --tasks segmentation,depth,boxes
	$(BIN)/python evaluate.py --checkpoint runs/demo/best.pt
	$(BIN)/python inference.py --checkpoint runs/demo/best.pt --input media/sample.jpg --output predictions
	@echo "Look at predictions/sample_overview.jpg, and: $(BIN)/tensorboard --logdir runs"

# OMP_NUM_THREADS: two processes share the cores. PYTHONDONTWRITEBYTECODE: the installation above compiles nothing, and
# where the environment forbids bytecode, each start of Python would compile torch and timm anew, 7 s of CPU time.
TESTED = OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest
# loadfile: what the tests of a file share is made once.
PYTEST = $(TESTED) -n 2 --dist loadfile --no-loadscope-reorder

test: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(PYTEST)

coverage: $(VENV)/installed-dev
	$(PYTEST) --cov --cov-report=term

# What depends most on the version of Python; .ci/run does it with those that it finds.
quick: $(VENV)/installed-quick
	$(TESTED) tests/test_config.py tests/test_tasks.py tests/test_loss.py \
		tests/test_metrics.py tests/test_geometry.py tests/test_train.py::test_train_evaluate_inference

# ROOMS: of make demo. JOINT, INDOOR: trained with configs/camvid_redkitchen.yaml, configs/replica_redkitchen.yaml. The
# others are of the weights in the repository, on frames that they have not seen. The notebook trains, too.
PICTURE = $(BIN)/python -m tools.readme_pictures
media: $(VENV)/installed-dev
	$(PICTURE) overview --checkpoint $(SHIPPED) --name photo_overview
	$(PICTURE) overview --checkpoint $(ROOMS) --picture media/sample.jpg --name demo
	$(PICTURE) results --checkpoint $(JOINT) --data dataset/camvid dataset/redkitchen --frames 1
	$(PICTURE) results --checkpoint $(INDOOR) --data dataset/replica_office0 --name office
	$(PICTURE) surface --checkpoint $(INDOOR) --data dataset/redkitchen
	$(PICTURE) results --checkpoint $(SHIPPED) --data dataset/nyudv2 --name nyudv2
	$(BIN)/python evaluate.py --checkpoint $(SHIPPED) --data dataset/nyudv2 --worst 2 --output predictions/worst.json
	$(PICTURE) stack --pictures predictions/worst/*.jpg --name nyudv2_worst
	$(PICTURE) cloud --checkpoint $(SHIPPED) --picture $(PHOTO)
	$(PICTURE) app --checkpoint $(SHIPPED) --picture $(PHOTO)
	$(BIN)/jupyter execute --inplace notebooks/quickstart.ipynb

# What only a GPU can show, into the folder OUT; GPU="tests speed" is a part of it.
OUT ?= runs/gpu
GPU ?= tests speed train
gpu: $(VENV)/installed-dev
	$(BIN)/python -m tools.gpu --output $(OUT) --parts $(GPU)

# A minute for each reader of files.
fuzz: $(VENV)/installed-dev
	$(BIN)/pip install --quiet -r requirements/fuzz.txt
	for reader in list dataset settings checkpoint; do \
		PYTHONPATH=. $(BIN)/python tests/fuzz.py $$reader -max_total_time=60 -rss_limit_mb=4096 || exit 1; done

# Known holes in the installed packages, by the advisories of PyPI.
audit: $(VENV)/installed-dev
	$(BIN)/pip install --quiet pip-audit
	$(BIN)/pip-audit --skip-editable

# uv takes what another environment has by hard links, 20 times as fast as pip. It does not read pip's settings, of which
# the constraint matters; where it does not get there, pip does.
define install
	$(PYTHON) -m venv $(VENV)
	{ $(BIN)/pip install --quiet uv && \
		UV_CONSTRAINT="$$($(BIN)/pip config list | sed -n "s/^global.constraint='\(.*\)'/\1/p")" \
		$(BIN)/uv pip install --quiet --python $(BIN)/python -r $(1); } || \
		$(BIN)/pip install --quiet --no-compile -r $(1)
	touch $@
endef

$(VENV)/installed: requirements.txt
	$(call install,requirements.txt)

$(VENV)/installed-quick: requirements.txt requirements/quick.txt
	$(call install,requirements/quick.txt)

$(VENV)/installed-dev: requirements.txt $(wildcard requirements/*.txt)
	$(call install,requirements/dev.txt)

# Trained networks and predictions stay.
clean:
	rm -rf $(VENV) .coverage* .hypothesis .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
