# make demo | test | lint | bench | docs     (PYTHON=python3.12 make … chooses the interpreter)

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test lint bench docs
.DELETE_ON_ERROR:

# A guide of handwritten digits: build it, ask it about one picture, say where its report is.
demo: $(VENV)/installed
	$(BIN)/fieldguide models get starter
	$(BIN)/python -m fieldguide.demo

test: $(VENV)/installed-dev
	$(BIN)/fieldguide models get starter
	$(BIN)/fieldguide models get starter-text
	$(BIN)/python -m pytest

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/mypy

# Each bench prints one table and writes bench/results/<name>.json; see bench/README.md.
bench: $(VENV)/installed-dev
	$(BIN)/fieldguide models get starter
	set -e; for bench in bench/*.py; do echo "== $$bench"; $(BIN)/python $$bench; done

# docs/cli.md is the commands' real help text; a test holds them equal.
docs: $(VENV)/installed
	$(BIN)/python docs/make_cli.py

# The stamps are newer than pyproject.toml when the environment is up to date. An unfinished installation
# leaves no stamp and is continued by the next call.
$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml | $(BIN)/python
	$(BIN)/pip install -e .
	touch $@

$(VENV)/installed-dev: pyproject.toml | $(BIN)/python
	$(BIN)/pip install -e ".[dev]"
	touch $@ $(VENV)/installed
