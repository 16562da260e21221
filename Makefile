# make demo   the weights in the repository on a photograph, then a training on generated rooms: no GPU, no data set
# make test   lint and tests, the same that CI runs; make coverage tells also which lines they run
# make media  the pictures of the README, from the networks named below
# make fuzz   coverage-guided fuzzing of the readers, minutes
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
SHIPPED = model/nyudv2_lite0.safetensors
ROOMS ?= runs/demo/best.pt
JOINT ?= runs/joint/best.pt
INDOOR ?= runs/indoor/best.pt
PHOTO ?= dataset/redkitchen/rgb/000675.jpg

.PHONY: demo test coverage quick media fuzz audit clean

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

# JOINT, INDOOR: trained with configs/camvid_redkitchen.yaml, configs/replica_redkitchen.yaml. The notebook trains, too.
media: $(VENV)/installed-dev
	$(BIN)/python inference.py --checkpoint $(SHIPPED) --output predictions
	cp predictions/photo_overview.jpg media/photo_overview.jpg
	$(BIN)/python inference.py --checkpoint $(ROOMS) --input media/sample.jpg --output predictions
	cp predictions/sample_overview.jpg media/demo.jpg
	$(BIN)/python -m tools.readme_pictures results --checkpoint $(JOINT) --data dataset/camvid dataset/redkitchen --frames 1
	$(BIN)/python -m tools.readme_pictures results --checkpoint $(INDOOR) --data dataset/replica_office0 --name office
	$(BIN)/python -m tools.readme_pictures surface --checkpoint $(INDOOR) --data dataset/redkitchen
	$(BIN)/python -m tools.readme_pictures cloud --checkpoint $(INDOOR) --picture $(PHOTO)
	$(BIN)/python -m tools.readme_pictures app --checkpoint $(INDOOR) --picture $(PHOTO)
	$(BIN)/jupyter execute --inplace notebooks/quickstart.ipynb

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
