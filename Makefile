# make demo   trains, evaluates and shows the network on generated rooms: no GPU, no data set
# make test   lint and tests, the same that CI runs
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test clean

demo: $(VENV)/installed
	rm -rf runs/demo
	$(BIN)/python train.py --run runs/demo
	$(BIN)/python evaluate.py --checkpoint runs/demo/best.pt
	$(BIN)/python inference.py --checkpoint runs/demo/best.pt --output predictions
	@echo "Look at predictions/sample_overview.jpg, and: $(BIN)/tensorboard --logdir runs"

test: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest

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
