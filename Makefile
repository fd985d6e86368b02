# `make train` and `make test` do everything on a fresh machine with Python 3.11 or later.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: train test test-all test-dense check format docs notebooks package test-versions \
  test-accelerators clean

train: $(VENV)/.installed
	$(BIN)/python -m experiments.train $(ARGS)

# A file of tests stays on one worker, where its programs are compiled once.
test: $(VENV)/.installed
	$(BIN)/python -m pytest -n auto --dist loadfile $(ARGS)

# The long tests too, compiled and drawn as by users.
test-all: $(VENV)/.installed
	$(BIN)/python -m pytest -n auto --dist loadfile --optimised --long --pages $(ARGS)

# The tests of the sweep over tiles, on the matrix of all pairs that small batches take; and those of
# embeddings of few entries, by the products that longer ones take.
test-dense: $(VENV)/.installed
	$(BIN)/python -m pytest -n auto --dist loadfile --dense tests/test_all_pairs.py \
	  tests/test_anchor_losses.py $(ARGS)
	$(BIN)/python -m pytest -n auto --dist load --dense --products tests/test_all_pairs.py \
	  tests/test_memory.py $(ARGS)

check: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The site, in build/site, once the code of the README and of its pages has run; a warning is an
# error, but not one that --quiet would keep out. The variable keeps out an advertisement.
docs: $(VENV)/.installed
	$(BIN)/python -m pytest -n auto --dist load --pages -m page tests/test_readme.py $(ARGS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# From their texts, without outputs.
notebooks: $(VENV)/.installed
	$(BIN)/jupytext --quiet --update --to ipynb notebooks/*.py

# Wheel and sdist, each in an environment that holds nothing else.
package: $(VENV)/.installed
	.ci/package $(BIN)/python

# The tests of .ci/versions/selection.txt with the versions of colab, python311 and newest, each in
# an environment of its own, but for versions with which `make test` has run in .venv. ARGS=all runs
# all tests, ARGS=colab one column, ARGS='all colab' both.
test-versions:
	.ci/test-versions $(ARGS)

# Compiled for TPUs and a GPU, which need not be there.
test-accelerators: $(VENV)/.installed
	.ci/test-accelerators $(BIN)/python $(ARGS)

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "contrastive_jax needs Python 3.11 or later; $(PYTHON) is $$($(PYTHON) --version). Try: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) build .mypy_cache .pytest_cache .ruff_cache
