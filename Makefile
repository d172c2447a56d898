# Two commands do all the set-up: `make demo` and `make test`. `make help` lists the rest.
# Another Python: make demo PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := -m pip install --disable-pip-version-check
JOBS ?= 2
PACKAGES := splitfed clients server compression
SOURCES := $(PACKAGES) tests benchmarks
RUN := digits
LOCK := build/lock/bin/uv pip compile --quiet --universal --python-version 3.11 --constraint constraints.txt \
	--custom-compile-command "make lock"
# A look into every room, the quick ones of its tests.
SMOKE := tests/test_layout.py tests/compression/test_lossless.py tests/splitfed/scenario/test_presets.py \
	tests/compression/codecs/test_rotation.py tests/compression/reducers/test_registry.py \
	tests/splitfed/scenario/test_document.py tests/splitfed/data/test_own.py \
	tests/splitfed/model/test_parts.py tests/splitfed/federation/test_availability.py tests/splitfed/wire \
	tests/splitfed/split/test_weights.py tests/splitfed/run tests/splitfed/engines/test_tls.py \
	tests/splitfed/reports/test_units.py tests/splitfed/cli/test_listing.py tests/clients/test_connect.py \
	tests/server/deployment/test_tickets.py tests/server/back/test_pools.py tests/runs/test_bytes.py

# Tests use no network and no personal settings.
TEST_ENV := HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1 \
	RAY_USAGE_STATS_ENABLED=0

.DEFAULT_GOAL := help
.PHONY: help install demo smoke test test-slow test-long test-all lint format types schema lock notebook wheel clean

help:  ## Show what there is to make, with the times of two cores
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

install: $(READY)  ## Make .venv and install splitfed and its tools into it: minutes, by the network

# Made anew when what it installs has changed; pip then only fetches what is different. torch is apart: which build it is,
# CPU or CUDA, is left to where pip takes it from, and so is which of the packages beside it in torch.txt are wanted.
$(READY): pyproject.toml requirements/locked.txt requirements/torch.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "splitfed needs Python 3.11 or newer, $(PYTHON) is $$($(PYTHON) --version 2>&1); try make PYTHON=python3.11"; exit 1; }
	@echo "installing splitfed and what it needs into $(VENV), 2.4 GB: minutes, by the network"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP) --no-deps --require-hashes --requirement requirements/locked.txt
	$(BIN)/python $(PIP) --constraint requirements/torch.txt torch torchvision
	$(BIN)/python $(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(READY)  ## Train on handwritten digits, offline, and show where the bytes went: 1 to 3 minutes
	$(BIN)/splitfed simulate $(RUN)

smoke: $(READY)  ## Run some tests of every room and one round of digits: a minute
	$(TEST_ENV) $(BIN)/python -m pytest -q -m "not slow" $(SMOKE)
	rm -rf build/smoke
	$(BIN)/splitfed simulate digits --set federation.rounds=1 --set federation.local_epochs=1 --runs build/smoke

test: $(READY)  ## Run the tests that take seconds each, in JOBS=2 processes: 10 minutes
	@echo "about ten minutes on two cores; make smoke takes one"
	$(TEST_ENV) $(BIN)/python -m pytest -m "not slow and not long" --numprocesses $(JOBS) --dist loadfile --durations=20

test-slow: $(READY)  ## Run the tests that take longer: tens of minutes
	$(TEST_ENV) $(BIN)/python -m pytest -m "slow and not long" --durations=20

test-long: $(READY)  ## Run the tests that watch many processes for minutes each: tens of minutes
	$(TEST_ENV) $(BIN)/python -m pytest -m long

test-all: test test-slow test-long  ## Run all tests, one suite after another

lint: $(READY)  ## Check style: a second
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY)  ## Put the style right: a second
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(READY)  ## Check types in all four folders: a minute, then seconds
	$(BIN)/mypy -p splitfed

schema: $(READY)  ## Renew scenarios/schema.json and sweeps/schema.json, by which editors check these files: seconds
	$(BIN)/splitfed schema scenario --out scenarios/schema.json
	$(BIN)/splitfed schema sweep --out sweeps/schema.json

# Versions that stand there already stay, unless pyproject.toml or constraints.txt forbids them. torch is left out of the
# first file together with all that it alone needs, which then is what is new in the last. Flower would install apps'
# packages by uv; here it installs none.
lock:  ## Renew requirements/ from pyproject.toml and constraints.txt: seconds, by the network
	mkdir -p build requirements
	test -x build/lock/bin/python || $(PYTHON) -m venv build/lock
	build/lock/bin/python $(PIP) --quiet --constraint constraints.txt uv
	printf "%s; python_version < '3'\n" torch torchvision > build/no-torch.txt
	$(LOCK) --extra dev --override build/no-torch.txt --generate-hashes --output-file requirements/locked.txt pyproject.toml
	cp build/no-torch.txt build/no-tools.txt && echo "uv; python_version < '3'" >> build/no-tools.txt
	$(LOCK) --constraint requirements/locked.txt --override build/no-tools.txt --generate-hashes \
		--output-file requirements/client.txt requirements/client.in
	printf "%s\n" torch torchvision | \
		$(LOCK) --constraint requirements/locked.txt --no-annotate --output-file requirements/torch.txt -
	awk 'NR == FNR {locked[$$1]; next} !($$1 in locked) || /^#/' requirements/locked.txt requirements/torch.txt > build/torch.txt
	mv build/torch.txt requirements/torch.txt

notebook: $(READY)  ## Run the notebook in examples/ again and keep its outputs: a minute
	cd examples && $(TEST_ENV) $(CURDIR)/$(BIN)/jupyter-execute --inplace --NotebookClient.record_timing=False digits.ipynb

wheel: $(READY)  ## Build the wheel and the source distribution into dist/: half a minute
	rm -rf dist build/lib build/bdist.*
	$(BIN)/python -m build --no-isolation --outdir dist

clean:  ## Remove what was built; .venv and runs/ stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +
