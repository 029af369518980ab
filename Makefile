# Every target does whatever set-up it still needs; nothing has to be installed by hand but Python 3.11 and make.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
# Tests run in so many processes; the tests of a file stay in one, and the long ones of tests/ray begin first.
WORKERS ?= 2
# The tests start some hundred processes, each of which would compile the code anew.
unexport PYTHONDONTWRITEBYTECODE
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup --no-loadscope-reorder

.PHONY: install demo serve check test test-all lint style types unit-tests quick-tests all-tests ui clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/python jobs/demo.py

serve: $(STAMP)
	$(BIN)/python jobs/serve.py

lint: style types

style: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

# Beside the tests, because mypy keeps one core busy, for half a minute where it has no cache.
check: style
	$(MAKE) --no-print-directory --jobs 2 types unit-tests

test: style
	$(MAKE) --no-print-directory --jobs 2 types quick-tests

test-all: style
	$(MAKE) --no-print-directory --jobs 2 types all-tests

unit-tests: $(STAMP)
	$(PYTEST) tests/unit

quick-tests: $(STAMP)
	$(PYTEST)

all-tests: $(STAMP)
	$(PYTEST) -m ''

ui: $(STAMP)
	mkdir -p runs
	$(BIN)/mlflow ui --host 127.0.0.1 --port 5000 --backend-store-uri sqlite:///runs/mlflow.db

clean:
	rm -rf .venv
