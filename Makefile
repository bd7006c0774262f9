# make demo    private votes of real people become a reward model, which teaches the language model (about 10 minutes after installation)
# make test    lint, types, import contracts, unit tests
# make help    all targets
#
# PYTHON=…     another interpreter (3.11 to 3.13)
# PIP_ARGS=…   more arguments for pip, for example to take another build of torch

VENV := .venv
BIN := $(VENV)/bin
FITS := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for p in python3 python3.12 python3.13 python3.11 python; do $$p -c '$(FITS)' 2>/dev/null && echo $$p && break; done)
RUN := runs/quickstart
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo test lint types contracts unit test-slow test-model test-recipes test-all mutants clean

help:
	@sed -n '1,6p' Makefile; grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*##/  /'

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "error[FP601] No Python 3.11, 3.12 or 3.13 on the path." ; \
	  echo "  why: fedpref needs one of them; torch has no build for others." ; \
	  echo "  fix: install one, or: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" ; exit 1; } >&2
	@$(PYTHON) -c '$(FITS)' || { echo "error[FP601] $(PYTHON) is not Python 3.11, 3.12 or 3.13." ; \
	  echo "  fix: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" ; exit 1; } >&2
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --progress-bar off $(PIP_ARGS) -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --progress-bar off $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(VENV)/.installed ## install, train, release, report
	@if grep -qs '"status": "finished"' $(RUN)/run.json; then $(BIN)/fedpref report $(RUN); \
	 elif [ -f $(RUN)/run.json ]; then $(BIN)/fedpref run recipes/quickstart.yaml --resume; \
	 else $(BIN)/fedpref run recipes/quickstart.yaml; fi
	@echo "The command is $(BIN)/fedpref; '. $(BIN)/activate' puts it on your path."

test: lint types contracts unit ## lint, types, import contracts, unit tests

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

contracts: $(VENV)/.installed-dev
	$(BIN)/lint-imports --no-logo --no-cache

unit: $(VENV)/.installed-dev ## unit tests alone
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --durations=5

test-slow: $(VENV)/.installed-dev ## environments, kills, TRL, trackers: minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m slow --durations=5

test-model: $(VENV)/.installed-dev ## the real embedded model and the quickstart: minutes
	$(BIN)/python -m pytest -q -m model --durations=5

test-recipes: $(VENV)/.installed-dev ## adapters trained on clients, every recipe with and without noise: half an hour
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -s -m recipes --durations=0

test-all: test test-slow test-model test-recipes ## everything

mutants: $(VENV)/.installed-dev ## plant known defects of well-known systems; print which test kills each
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.privacy.mutants

clean: ## remove the environment; run folders stay
	rm -rf $(VENV)
