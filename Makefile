# Needs make and Python 3.11 or newer; everything else goes into .venv.
#
#   make test    set up on first use, then run the fast tests
#   make demo    set up on first use, then reconstruct a built-in molecule: demo/auto/report.html

PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13; do \
	if "$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; \
	then echo "$$p"; break; fi; done)

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
READY_BENCH := $(VENV)/.ready-bench
READY_DOCS := $(VENV)/.ready-docs
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
LONG_BENCHMARKS := auto starts refine_scaling same_results

.PHONY: help setup demo test slow check format bench docs clean distclean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: $(READY)  ## create .venv with the program (.venv/bin/vitreous) and every tool, at the pinned versions

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or newer found; give one: make setup PYTHON=/path/to/python3.11" >&2; exit 1; }
	@test -x $(BIN)/python || { echo "creating $(VENV) with $(PYTHON)"; "$(PYTHON)" -m venv $(VENV); }
	@echo "installing vitreous and the tools of developers into $(VENV) (2 to 5 minutes, 2 GB)"
	@$(PIP) -e '.[dev]'
	@touch $@
	@echo "installed $(BIN)/vitreous; to have it on the path: source $(VENV)/bin/activate"

$(READY_BENCH): $(READY)
	@$(PIP) -e '.[bench]'
	@touch $@

$(READY_DOCS): $(READY)
	@$(PIP) -e '.[docs]'
	@touch $@

demo: $(READY)  ## simulate a built-in molecule, reconstruct it without poses, write demo/auto/report.html
	$(BIN)/vitreous demo -o demo --overwrite

test: $(READY)  ## the fast tests, on all cores
	$(BIN)/pytest -n auto --dist worksteal

slow: $(READY)  ## end-to-end quality tests with thresholds at fixed seeds 
	$(BIN)/pytest -m slow -n auto --dist worksteal

check: $(READY)  ## format, lint, types, import contracts, doctests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -o addopts= -q --doctest-modules src

format: $(READY)  ## rewrite the code in the house format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY_BENCH)  ## run the scripts of benchmarks/ that take minutes, JSON to bench-results/
	@mkdir -p bench-results
	@set -e; for script in benchmarks/[!_]*.py; do \
		name=$$(basename "$$script" .py); \
		case " $(LONG_BENCHMARKS) " in *" $$name "*) echo "$$name: takes hours, left out"; continue;; esac; \
		echo "$$name"; \
		$(BIN)/python "$$script" > "bench-results/$$name.json"; \
	done

docs: $(READY_DOCS)  ## the documentation site: site/index.html; fails at a broken link or reference
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:  ## remove caches, the demo and benchmark results
	rm -rf demo site bench-results build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests benchmarks docs -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean  ## clean, and remove .venv
	rm -rf $(VENV) src/*.egg-info
