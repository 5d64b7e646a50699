# Each target does all of its own set-up. Stamp files in the venv make the second time quick.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
PINS := pyproject.toml constraints.txt
SOURCES := $(shell find xdyna adapters controlnets infer configs -name '*.py' -o -name '*.yaml' -o -name '*.safetensors')

.PHONY: help demo test test-slow lint format clean

help:
	@echo "make demo    animate the shipped example: demo.mp4"
	@echo "make test    run the tests, but for the slow ones"
	@echo "make test-slow  run those"
	@echo "make lint    ruff, and mypy through the folder of links"
	@echo "make format  let ruff rewrite what it can"
	@echo "make clean   remove the venv, caches and demo.mp4"

demo: demo.mp4
	@echo "demo.mp4 is ready"

demo.mp4: $(VENV)/.with-pose examples/photo.png examples/dance.mp4 $(SOURCES)
	$(BIN)/xdyna animate --ref examples/photo.png --pose-video examples/dance.mp4 -o $@

test: $(VENV)/.with-dev
	$(BIN)/pytest

test-slow: $(VENV)/.with-dev
	$(BIN)/pytest -m slow

lint: $(VENV)/.with-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python scripts/typing_links.py
	$(BIN)/mypy .typing/xdyna

format: $(VENV)/.with-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found; name another with make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.with-pose: $(PINS) | $(BIN)/python
	$(INSTALL) -e '.[pose]'
	touch $@

$(VENV)/.with-dev: $(PINS) | $(BIN)/python
	$(INSTALL) -e '.[pose,train,dev]'
	touch $@ $(VENV)/.with-pose

clean:
	rm -rf $(VENV) .typing .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info demo.mp4*
