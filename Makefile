# Two commands do all the set-up: `make demo` and `make test`. `make help` lists the rest.
# Another Python: make demo PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PACKAGES := splitfed clients server compression
SOURCES := $(PACKAGES) tests benchmarks
TYPES := build/types
RUN := digits

# Tests use no network and no personal settings.
TEST_ENV := HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1 \
	RAY_USAGE_STATS_ENABLED=0

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow test-all lint format types schema notebook wheel clean

help:  ## Show what there is to make
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

install: $(READY)  ## Make .venv and install splitfed and its tools into it

# Made anew when what it installs has changed; pip then only fetches what is different.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "splitfed needs Python 3.11 or newer, $(PYTHON) is $$($(PYTHON) --version 2>&1); try make PYTHON=python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(READY)  ## Train on handwritten digits, offline, and show where the bytes went
	$(BIN)/splitfed simulate $(RUN)

test: $(READY)  ## Run the tests that take seconds
	$(TEST_ENV) $(BIN)/python -m pytest -m "not slow"

test-slow: $(READY)  ## Run the tests that take minutes
	$(TEST_ENV) $(BIN)/python -m pytest -m slow

test-all: $(READY)  ## Run all tests
	$(TEST_ENV) $(BIN)/python -m pytest

lint: $(READY)  ## Check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY)  ## Put the style right
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The four folders are one package only once installed, and mypy does not look through an editable install: it would
# pass over three of them without a word. So they are linked into the shape that they have in the wheel.
types: $(READY)  ## Check types in all four folders
	rm -rf $(TYPES) && mkdir -p $(TYPES)/splitfed
	ln -s $(CURDIR)/splitfed/* $(CURDIR)/clients $(CURDIR)/server $(CURDIR)/compression $(TYPES)/splitfed/
	rm -f $(TYPES)/splitfed/__pycache__
	cd $(TYPES) && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml --cache-dir $(CURDIR)/.mypy_cache -p splitfed

schema: $(READY)  ## Renew scenarios/schema.json and sweeps/schema.json, by which editors check these files
	$(BIN)/splitfed schema scenario --out scenarios/schema.json
	$(BIN)/splitfed schema sweep --out sweeps/schema.json

notebook: $(READY)  ## Run the notebook in examples/ again and keep its outputs
	cd examples && $(TEST_ENV) $(CURDIR)/$(BIN)/jupyter-execute --inplace --NotebookClient.record_timing=False digits.ipynb

wheel: $(READY)  ## Build the wheel and the source distribution into dist/
	rm -rf dist build/lib build/bdist.*
	$(BIN)/python -m build --outdir dist

clean:  ## Remove what was built; .venv and runs/ stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +
