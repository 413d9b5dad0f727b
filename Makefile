# The book in one command: `make book`. Everything here runs in .venv, made from requirements.lock.

PYTHON ?= python3
VENV ?= .venv
# A requirement or a wheel file, and the address of an index of CPU builds: see README.md.
TORCH ?=
TORCH_INDEX ?=
# Seconds one notebook cell may take in the tests.
CELL_TIMEOUT ?= 300
PORT ?= 8000

BIN := $(VENV)/bin
HTML := _build/html
BUILD := $(BIN)/jupyter-book build . --warningiserror --nitpick --keep-going
# Two targets at a time print one after the other, where this make knows how.
SYNC := $(if $(filter output-sync,$(.FEATURES)),--output-sync=target)
export LOCALITY_PRESET ?= laptop
ifdef LOCALITY_DATA  # the notebooks run in a folder of their own: a relative path would be lost
export LOCALITY_DATA := $(abspath $(LOCALITY_DATA))
endif

.DEFAULT_GOAL := help
.PHONY: help env book test lint unit notebooks strict-book web execute lab serve bench lock clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' Makefile

env:
	@$(PYTHON) scripts/setup_env.py --venv "$(VENV)" --goal "$(or $(MAKECMDGOALS),book)" \
		--torch "$(TORCH)" --torch-index "$(TORCH_INDEX)"

book: env  ## build the pages from the notebooks' stored outputs
	@$(BUILD) --quiet
	@echo "The book is built. Open $(CURDIR)/$(HTML)/index.html, or run: make serve"

test: lint strict-book  ## everything the continuous integration runs
	@# Browser and unit tests leave a core idle by turns; the notebooks use all cores.
	@$(MAKE) --no-print-directory --jobs=2 $(SYNC) unit web
	@$(MAKE) --no-print-directory notebooks

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

unit: env
	$(BIN)/python -m pytest --ignore=tests/web tests

notebooks: env
	@# Two at a time, each on half of the cores: cells that use one core leave none idle.
	OMP_NUM_THREADS=$$($(BIN)/python -c "import os; print(max(1, os.cpu_count() // 2))") \
		$(BIN)/python -m pytest --numprocesses=2 --dist=loadfile --nbval-lax --nbval-current-env \
		--nbval-cell-timeout=$(CELL_TIMEOUT) book

strict-book: env
	rm -rf _build
	$(BUILD) --all --quiet

web: env
	$(BIN)/python -m pytest tests/web

execute: env  ## re-run all notebooks in place, in the laptop preset
	$(BIN)/python scripts/execute.py $(NOTEBOOKS)

lab: env  ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab --notebook-dir=book

serve: book  ## build and serve the pages on this machine
	@echo "http://127.0.0.1:$(PORT)/ (stop with Ctrl-C)"
	@$(BIN)/python -m http.server --bind 127.0.0.1 --directory $(HTML) $(PORT)

bench: env  ## run the benchmarks on one thread; they write benchmarks/results
	@set -e; for script in benchmarks/[!_]*.py; do \
		echo "== $$script"; OMP_NUM_THREADS=1 $(BIN)/python "$$script"; done

lock: env  ## resolve requirements.lock anew (needs uv)
	$(BIN)/python scripts/update_lock.py

clean:  ## remove what was built, but not .venv
	rm -rf _build .pytest_cache .ruff_cache
