# Every target sets up what it needs: `make demo` and `make test` work on a fresh clone.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP = $(BIN)/pip --disable-pip-version-check install --constraint constraints.txt
TICK_SECONDS = 10
comma := ,

.PHONY: demo test test-external test-slow docs lint chaos soak bench bench-quick clean

demo: $(VENV)/.demo
	$(BIN)/imagemill demo demo

# Files with tests of Ray, the slowest ones, run first. More processes than cores take longer, and so do more threads of torch.
test: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

# Tests that run other programs: linters, kubectl, Sphinx, pip, and tools that read our files.
test-external: $(VENV)/.test
	$(BIN)/python -m pytest -m external --numprocesses 2 --dist loadfile --no-loadscope-reorder

# Tests that take most of a minute each: trainings on Ray Train, starts of another Ray, the commands of pages.
test-slow: $(VENV)/.test
	$(BIN)/python -m pytest -m slow

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

# Simulate an hour of nights over a changing folder, and kill every third run. Writes soak/soak.md.
soak: $(VENV)/.test
	$(BIN)/python -m tests.faults.soak

# Compare Imagemill with other tools on an idle machine; takes 23 minutes on two cores. Writes bench/bench.md, bench.png and bench.json.
bench: $(VENV)/.bench
	$(BIN)/python tests/benchmarks/bench.py

# Run a small benchmark in three minutes. It shows what is broken; its figures are too noisy to compare.
bench-quick: $(VENV)/.bench
	$(BIN)/python tests/benchmarks/bench.py --quick

clean:
	rm -rf $(VENV) demo bench soak docs/_build

# Install packages quietly, and print every 10 seconds what pip does. The loop ends with pip, or when make is interrupted.
define install
@(while sleep $(TICK_SECONDS) >/dev/null && kill -0 $$$$ 2>/dev/null; do \
    seconds=$$((seconds + $(TICK_SECONDS))); \
    echo "  $$seconds s, $$(du -sm $(VENV) | cut -f 1) MB: $$(tail -n 1 $(VENV)/install.log | cut -c 1-50)"; \
  done) & loop=$$!; \
  $(PIP) $(1) >$(VENV)/install.log; code=$$?; kill $$loop; exit $$code
endef

$(VENV)/.base: constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo "PYTHON=$(PYTHON): is $$($(PYTHON) --version). Use Python 3.11, 3.12 or 3.13: make PYTHON=python3.12"; exit 1; }
	@echo "Setting up $(VENV): torch, ray and other packages, 3 GB to download. This takes a few minutes, once."
	@$(PYTHON) -m venv $(VENV)
	$(call install,hatchling editables)

$(VENV)/.demo: $(VENV)/.base
	$(call install,--no-build-isolation --editable '.[demo$(comma)train]')
	@touch $(VENV)/.base $@

$(VENV)/.test: $(VENV)/.base
	$(call install,--no-build-isolation --editable '.[test]')
	@touch $(VENV)/.base $(VENV)/.demo $@

$(VENV)/.docs: $(VENV)/.base
	$(call install,sphinx myst-parser furo sphinx-copybutton)
	@touch $@

$(VENV)/.bench: $(VENV)/.base
	$(call install,--no-build-isolation --editable '.[demo$(comma)train$(comma)bench]')
	@touch $(VENV)/.base $(VENV)/.demo $@
