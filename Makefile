# Every target works from a bare clone: it makes .venv, installs what it needs there, once, and runs.
#   make demo          train a model that shrinks while it trains; ends with a table and an HTML report
#   make test          the quick suite          make test-slow    the rest of the tests
#   make lint          ruff                     make types        mypy
#   make docs          build the documentation  make format       let ruff rewrite the sources
#   make bench         benchmarks, minutes      make bench-full   benchmarks, all sizes
#   make bench-publish web pages of all results in .asv
#   make dist          wheel and sdist, checked    make test-dist    the wheel's tests, in an environment of its own
#   make test-oldest   the tests with the oldest releases that pyproject.toml allows
#   make clean         remove what these targets wrote, .venv too
#
# Variables, all optional:
#   PYTHON=python3.12  the interpreter to make .venv with (default: the first suitable one on PATH)
#   TORCH_INDEX=URL    a further package index to take torch from, for instance one with CPU builds
#   JOBS=4             worker processes of the tests
#   ARGS="..."         further arguments for the program that a target runs

SHELL := /bin/sh
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules

VENV := .venv
BIN := $(VENV)/bin
JOBS ?= auto
ARGS ?=
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check $(if $(CI),--quiet) -c constraints.txt \
    $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

# Each test worker computes with one thread: the workers already fill the machine.
ONE_THREAD := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1
PYTEST := $(ONE_THREAD) $(BIN)/python -m pytest -n $(JOBS) --maxprocesses=8 --dist=worksteal

.PHONY: help demo test test-slow lint format types docs bench bench-full bench-publish dist test-dist test-oldest clean

help:
	@sed -n '2,16s/^# \{0,1\}//p' Makefile

demo: $(VENV)/.installed-repro
	$(BIN)/python -m paper_repro demo $(ARGS)

test: $(VENV)/.installed-test
	$(PYTEST) -m "not slow and not gpu" $(ARGS)

test-slow: $(VENV)/.installed-test
	HYPOTHESIS_PROFILE=thorough $(PYTEST) -m "slow and not gpu" $(ARGS)

lint: $(VENV)/.installed-lint
	$(BIN)/ruff check $(ARGS) .
	$(BIN)/ruff format --check .

format: $(VENV)/.installed-lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.installed-lint $(VENV)/.installed-repro
	$(BIN)/mypy $(ARGS)

docs: $(VENV)/.installed-docs $(VENV)/.installed-repro
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict $(if $(CI),--quiet) $(ARGS)
	@echo "The documentation is in site/index.html"

bench: $(VENV)/.installed-bench
	$(BIN)/python -m asv_benchmarks.run $(ARGS)

bench-full: $(VENV)/.installed-bench
	$(BIN)/python -m asv_benchmarks.run --full $(ARGS)

bench-publish: $(VENV)/.installed-bench
	$(BIN)/asv publish $(ARGS)
	@echo "The pages are in .asv/html; '$(BIN)/asv preview' serves them"

dist: $(VENV)/.installed-dist
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

# From a folder without the sources, so that the tests meet the installed wheel and nothing else.
test-dist: dist
	rm -rf build/dist
	$(BIN)/python -m venv build/dist/venv
	build/dist/venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
	    $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) "$$(ls dist/*.whl)[test]"
	cp -r tests docs asv_benchmarks pyproject.toml build/dist
	cd build/dist && $(ONE_THREAD) venv/bin/python -m pytest -n $(JOBS) --maxprocesses=8 -m "not slow and not gpu" tests/hsv tests/hsv_torch $(ARGS)

# The packages themselves at their oldest, some of which use what others deprecate; what only tests need at its newest.
test-oldest: $(VENV)/.installed-test
	rm -rf build/oldest
	$(BIN)/python -m venv build/oldest/venv
	$(BIN)/python tests/oldest_versions.py torch cli control > build/oldest/requirements.txt
	build/oldest/venv/bin/python -m pip install --quiet --disable-pip-version-check \
	    $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -r build/oldest/requirements.txt \
	    array-api-strict ctrlsys hypothesis mpmath pymor pytest pytest-xdist python-flint slycot
	$(ONE_THREAD) build/oldest/venv/bin/python -W ignore::DeprecationWarning -m pytest -W ignore::DeprecationWarning -n $(JOBS) --maxprocesses=8 -m "not slow and not gpu" tests/hsv $(ARGS)

clean:
	rm -rf $(VENV) .asv .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist site
	find hsv hsv_torch paper_repro tests asv_benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp for each extra of pyproject.toml; all extras share one environment and one set of pins.
$(VENV)/.installed-%: pyproject.toml constraints.txt $(VENV)/.created
	@echo "Installing the packages of [$*] into $(VENV)"
	@$(PIP_INSTALL) --editable ".[$*]" || { \
	    echo "make: the packages of [$*] could not be installed with $$($(BIN)/python --version); pip's message is above." >&2; \
	    echo "make: if a pinned package has no build for this Python, run 'make clean' and choose another: make PYTHON=python3.12 ..." >&2; \
	    exit 1; }
	@touch $@

# A candidate must start (a version manager's stand-in may not) and bring what venv needs (Debian: package python3-venv).
# Newer versions than the pinned packages were built for are taken only when named with PYTHON=.
CANDIDATES := $(if $(PYTHON),$(PYTHON),python3 python3.13 python3.12 python3.11)
NEWEST := $(if $(PYTHON),99,14)
$(VENV)/.created:
	@found=; \
	for candidate in $(CANDIDATES); do \
	    if "$$candidate" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, $(NEWEST)))' 2>/dev/null; then \
	        found=$$candidate; break; \
	    fi; \
	done; \
	if [ -z "$$found" ]; then \
	    echo "make: found no Python from 3.11 up with the modules venv and ensurepip (tried: $(CANDIDATES))." >&2; \
	    echo "make: install one (Debian, Ubuntu: packages python3 and python3-venv) or name it: make PYTHON=/path/to/python3.12 ..." >&2; \
	    exit 1; \
	fi; \
	echo "Making $(VENV) with $$("$$found" --version) ($$found)"; \
	"$$found" -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --upgrade pip
	@touch $@
