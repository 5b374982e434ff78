# Every target sets up what it needs: `make demo` and `make test` work on a fresh clone.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: demo test docs lint chaos soak bench bench-quick clean

demo: $(VENV)/.demo
	$(BIN)/imagemill demo demo

# Two processes: the tests of Ray wait for processes to start as much as they compute. The longest first.
test: $(VENV)/.test
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

# The documentation site in docs/_build/html; a dead link or anchor is an error.
docs: $(VENV)/.docs
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --nitpicky -q docs docs/_build/html
	@echo "docs/_build/html/index.html"

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

chaos: $(VENV)/.test
	$(BIN)/python -m pytest -m chaos --timeout 1800 --numprocesses 3 --dist worksteal --durations 10

# An hour of nights over a folder that grows, changes and loses files, a third of them killed: soak/soak.md.
soak: $(VENV)/.test
	$(BIN)/python -m tests.faults.soak

# Imagemill beside other ways, on a quiet machine; it takes a while: bench/bench.md, bench.png, bench.json.
bench: $(VENV)/.bench
	$(BIN)/python tests/benchmarks/bench.py

# A small round in some three minutes: says what is broken, and nothing of how fast anything is.
bench-quick: $(VENV)/.bench
	$(BIN)/python tests/benchmarks/bench.py --quick

clean:
	rm -rf $(VENV) demo bench soak docs/_build

$(VENV)/.base: constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo "Python 3.11, 3.12 or 3.13 is needed; $(PYTHON) is $$($(PYTHON) --version). Say: make PYTHON=python3.12"; exit 1; }
	@echo "Setting up $(VENV): torch, ray and the rest, some 3 GB to download. This takes a few minutes, once."
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) hatchling editables

$(VENV)/.demo: $(VENV)/.base
	@$(PIP) --no-build-isolation --editable '.[demo,train]'
	@touch $(VENV)/.base $@

$(VENV)/.test: $(VENV)/.base
	@$(PIP) --no-build-isolation --editable '.[test]'
	@touch $(VENV)/.base $(VENV)/.demo $@

$(VENV)/.docs: $(VENV)/.base
	@$(PIP) sphinx myst-parser furo sphinx-copybutton
	@touch $(VENV)/.base $@

$(VENV)/.bench: $(VENV)/.base
	@$(PIP) --no-build-isolation --editable '.[demo,train,bench]'
	@touch $(VENV)/.base $(VENV)/.demo $@
