# Each target sets up what it needs in .venv, once, and then runs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DATA ?=

.PHONY: test test-all demo docs package lint format clean

test: $(READY)
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile tests/unit
	$(BIN)/python -m pytest -m "not slow" tests/ray tests/e2e

test-all: $(READY)
	$(BIN)/python -m pytest

demo: $(READY)
	$(BIN)/python scripts/demo.py $(if $(DATA),--data "$(DATA)")

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet
	@echo "build/site/index.html"

package: $(READY)
	$(BIN)/python scripts/package.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[dev,detect,docs,haproxy,imagenet]'
	touch $@

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache
