# make demo, make test, make check: all need only Python 3.11 or newer. The first one makes .venv and installs into it.
# Another interpreter: make PYTHON=python3.12 demo.  Options for pip: make PIP_OPTIONS="--index-url ..." demo.

ifeq ($(OS),Windows_NT)
PYTHON ?= python
BIN := .venv/Scripts
else
PYTHON ?= python3
BIN := .venv/bin
endif
PIP_OPTIONS ?=
PYTEST_OPTIONS ?=

RUN := $(BIN)/python
PIP := $(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt $(PIP_OPTIONS)
MKDOCS := NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict
CODE := monoformer tests $(wildcard examples benchmarks reproduce)

.DEFAULT_GOAL := help
.PHONY: help install demo demo-train test test-full test-suites check format site bench clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

install: .venv/.installed ## make .venv and install the package into it

demo: .venv/.installed ## see it work in a minute: the released model draws, captions, edits, answers and writes
	@$(RUN) -m monoformer demo

demo-train: .venv/.installed ## train a small model from nothing for about five minutes, show it and score it
	@$(RUN) -m monoformer demo --train

# Two processes of one thread each: small tensors gain nothing from a second thread. Another number: PYTEST_OPTIONS="-n 8".
test: export OMP_NUM_THREADS := 1
test: .venv/.installed-dev ## the fast tests (under ten minutes on two cores)
	@$(RUN) -m pytest -m "not slow" -n 2 --dist loadfile $(PYTEST_OPTIONS)

test-full: .venv/.installed-suites ## all tests, the long ones and those against lm_eval and pycocoevalcap too
	@$(RUN) -m pytest $(PYTEST_OPTIONS)

test-suites: .venv/.installed-suites ## the tests against lm_eval and pycocoevalcap alone
	@$(RUN) -m pytest tests/parity/test_harness.py tests/contracts/test_language_scores.py $(PYTEST_OPTIONS)

check: .venv/.installed-dev ## format, lint, types, architecture, every link of the documentation
	@$(RUN) -m ruff format --check $(CODE)
	@$(RUN) -m ruff check $(CODE)
	@$(RUN) -m mypy
	@$(RUN) -m pytest tests/test_architecture.py
	@$(MKDOCS) --site-dir build/site

site: .venv/.installed-dev ## the documentation as pages in site/, to be opened without a network or put on any server
	@$(MKDOCS)

format: .venv/.installed-dev ## put the code into the project's format and order its imports
	@$(RUN) -m ruff check --fix-only --quiet $(CODE)
	@$(RUN) -m ruff format $(CODE)

bench: .venv/.installed ## training throughput as a share of the machine's matrix-product peak
	@$(RUN) benchmarks/train_step.py

clean: ## remove .venv and everything that tools leave behind; runs/ stays
	rm -rf .venv build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find monoformer tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps say what .venv holds; a changed pyproject.toml or constraints.txt installs again.
.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "MonoFormer needs Python 3.11 or newer, but '$(PYTHON)' is: $$($(PYTHON) --version 2>&1)."; \
	  echo "Name a newer one, for example: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(RUN) || $(PYTHON) -m venv .venv || { \
	  echo "Python's venv module does not work here; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@echo "Installing into .venv (PyTorch is large: this can take some minutes) ..."
	@$(PIP) -e .
	@touch $@

.venv/.installed-dev: .venv/.installed
	@echo "Installing the tools for tests and checks ..."
	@$(PIP) -e '.[dev]'
	@touch $@

# The extra `evaluate` but for torch-fidelity, which needs a torchvision that does not load beside a CPU build of torch.
.venv/.installed-suites: .venv/.installed-dev
	@echo "Installing lm_eval and pycocoevalcap ..."
	@$(PIP) 'lm_eval[hf]>=0.4.9' 'pycocoevalcap>=1.2'
	@touch $@
