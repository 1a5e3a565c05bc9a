# Every target works on a fresh machine with Python 3.11 or newer: it makes .venv first if need be.
PYTHON ?= python3
BIN := .venv/bin
OUT ?= out
DEMO ?=
ONLY ?=
STAMP := .venv/.complete
# One thread a process: two processes whose threads spin for the same cores are far slower than one.
PYTEST := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n logical --maxprocesses 4

.PHONY: demo test slow check bench docs clean

demo: $(STAMP)
	$(BIN)/cofield demo --out $(OUT)/demo $(DEMO)

test: $(STAMP)
	$(PYTEST) $(ONLY)

slow: $(STAMP)
	$(PYTEST) -m slow

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright

bench: $(STAMP)
	$(BIN)/python benchmarks/world.py
	$(BIN)/python benchmarks/step.py --out results/bench-cpu/step.json

docs: $(STAMP)
	$(BIN)/python docs/fill_tables.py

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Cofield needs Python 3.11 or newer; say make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

clean:
	rm -rf .venv out runs
