# make demo: set up .venv and run the main job.   make test: set up what tests need and run them.   make shows: what docs claim and takes long.
PYTHON ?= python3
BIN := .venv/bin
export FLWR_TELEMETRY_ENABLED ?= 0
export RAY_USAGE_STATS_ENABLED ?= 0
# Tests start some hundred Pythons, which read compiled modules, also where an environment asks for none to be written.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo demo-inference test fast shows lint types docs check bench clean

demo: .venv/installed
	$(BIN)/fsl-simulate

# A minute of split inference on links that change, with a page at http://127.0.0.1:8050/; it trains a small model at first.
demo-inference: .venv/installed
	$(BIN)/fsl-serve demo

# Three at a time, since federations mostly wait. tests/conftest.py says what runs where, and in which order.
PYTEST := $(BIN)/python -m pytest -n 3 --no-loadscope-reorder

test: .venv/compiled
	$(PYTEST) --durations 20

fast: .venv/compiled
	$(PYTEST) -m "not slow and not shows"

shows: .venv/compiled
	$(PYTEST) -m shows --durations 20

lint: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# On the package as a user has it, not on the source tree; what an older build left is not in it. What mypy finds of
# torch stays in the cache, and a test of a user's script need not find it again.
types: .venv/installed-test
	rm -rf build
	$(BIN)/python -m pip install --quiet --no-deps --target build/installed .
	cp -r benchmarks build/installed
	cd build/installed && ../../$(BIN)/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache -p fsl -p benchmarks

docs: .venv/installed-test
	$(BIN)/mkdocs build --strict --quiet

check: lint types docs test

# What is measured, against its floors: forty minutes on two cores with nothing beside it; QUICK=1: a smoke run of a minute.
bench: .venv/installed-test
	$(BIN)/python -m benchmarks.suite $(if $(QUICK),--quick)

clean:
	rm -rf .venv build dist site .mypy_cache .ruff_cache .pytest_cache *.egg-info

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		(echo "fsl needs Python 3.11 or later; name one with make PYTHON=python3.11" >&2; exit 1)
	$(PYTHON) -m venv .venv

# A torch that is there already (a CUDA build, say) is kept: then its line in constraints.txt does not count.
.venv/constraints.txt: .venv/bin/python constraints.txt
	@if $(BIN)/python -c 'import torch' 2>/dev/null; \
		then grep -v '^torch==' constraints.txt > $@; else cp constraints.txt $@; fi

# pip would compile 20,000 modules, one after another, a minute on one processor; Python compiles what it imports.
INSTALL := $(BIN)/python -m pip install --quiet --no-compile --constraint .venv/constraints.txt --editable

.venv/installed: .venv/constraints.txt pyproject.toml
	$(INSTALL) .
	@touch $@

# It has all that `installed` has: what is made for tests is not installed twice.
.venv/installed-test: .venv/constraints.txt pyproject.toml
	$(INSTALL) '.[test,docs]'
	@touch .venv/installed $@

# For tests, which start hundreds of Pythons, side by side. Left as they are: packages' own tests, and what few tests use.
SELDOM := transformers/models|ray/(rllib|tune|train|serve|llm|data)|torch/(_inductor|testing|ao)|pip|setuptools|fontTools|tensorboard|skimage|pygments/lexers
.venv/compiled: .venv/installed-test
	@$(BIN)/python -m compileall -qq -j 0 -x '/(tests?|$(SELDOM))/' .venv/lib || true
	@touch $@
