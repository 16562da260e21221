# make demo   trains, evaluates and shows the network on generated rooms: no GPU, no data set
# make test   lint and tests, the same that CI runs
# make media  the pictures of the README, from the networks named below
# make fuzz   coverage-guided fuzzing of the readers, minutes
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
ROOMS ?= runs/demo/best.pt
JOINT ?= runs/joint/best.pt
INDOOR ?= runs/indoor/best.pt
PHOTO ?= dataset/redkitchen/rgb/000675.jpg

.PHONY: demo test quick media fuzz audit clean

demo: $(VENV)/installed
	rm -rf runs/demo
	$(BIN)/python train.py --run runs/demo
	$(BIN)/python evaluate.py --checkpoint runs/demo/best.pt
	$(BIN)/python inference.py --checkpoint runs/demo/best.pt --output predictions
	@echo "Look at predictions/sample_overview.jpg, and: $(BIN)/tensorboard --logdir runs"

test: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --cov --cov-report=term

# What depends most on the version of Python; .ci/run does it with those that it finds.
quick: $(VENV)/installed-dev
	$(BIN)/python -m pytest tests/test_config.py tests/test_tasks.py tests/test_loss.py tests/test_metrics.py \
		tests/test_geometry.py tests/test_train.py::test_train_evaluate_inference

# JOINT, INDOOR: trained with configs/camvid_redkitchen.yaml, configs/replica_redkitchen.yaml. The notebook trains, too.
media: $(VENV)/installed-dev
	$(BIN)/python -m tools.readme_pictures architecture
	$(BIN)/python inference.py --checkpoint $(ROOMS) --output predictions
	cp predictions/sample_overview.jpg media/demo.jpg
	$(BIN)/python -m tools.readme_pictures results --checkpoint $(JOINT) --data dataset/camvid dataset/redkitchen --frames 1
	$(BIN)/python -m tools.readme_pictures results --checkpoint $(INDOOR) --data dataset/replica_office0 --name office
	$(BIN)/python -m tools.readme_pictures surface --checkpoint $(INDOOR) --data dataset/redkitchen
	$(BIN)/python -m tools.readme_pictures cloud --checkpoint $(INDOOR) --picture $(PHOTO)
	$(BIN)/python -m tools.readme_pictures app --checkpoint $(INDOOR) --picture $(PHOTO)
	$(BIN)/jupyter execute --inplace notebooks/quickstart.ipynb

# A minute for each reader of files.
fuzz: $(VENV)/installed-dev
	$(BIN)/pip install --quiet -r requirements-fuzz.txt
	for reader in list dataset settings checkpoint; do \
		PYTHONPATH=. $(BIN)/python tests/fuzz.py $$reader -max_total_time=60 -rss_limit_mb=4096 || exit 1; done

# Known holes in the installed packages, by the advisories of PyPI.
audit: $(VENV)/installed-dev
	$(BIN)/pip install --quiet pip-audit
	$(BIN)/pip-audit --skip-editable

$(VENV)/installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -r requirements.txt
	touch $@

$(VENV)/installed-dev: $(wildcard requirements*.txt)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -r requirements-dev.txt
	touch $@

clean:
	rm -rf $(VENV) runs predictions
