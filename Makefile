SHELL = /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PEERS := .venv-peers
LINT_PATHS := sb3_dmpo benchmarks tests docs setup.py
PYTEST_ARGS ?= -n auto --maxprocesses 8

.DEFAULT_GOAL := help

help:
	@echo "make train          train DMPO on the TwoGoals toy, evaluate it, say where zip, score and picture are"
	@echo "make test           tests without the slow ones"
	@echo "make test-slow      the slow tests only"
	@echo "make test-cov       tests without the slow ones, with a coverage report"
	@echo "make peers          $(PEERS) with the d3rlpy that benchmarks/speed.py compares with"
	@echo "make paper-slice    tables and figures of the paper from the committed results"
	@echo "make docs           the documentation, docs/_build/index.html"
	@echo "make format         sort imports and format"
	@echo "make commit-checks  format check, types and lint"
	@echo "All of them but peers create $(VENV) first where it is missing (PYTHON=python3.12 picks the interpreter)."

venv: $(INSTALLED)

# torch on its own and first: its wheel is chosen by the index or the wheel folder in use (CPU or CUDA build),
# and everything after it resolves against the build that is there.
$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install -e ".[tests,zoo,plots,cluster,export,docs]" -c constraints.txt
	touch $@

peers: $(PEERS)/.installed

# An environment of its own, since d3rlpy pins gymnasium 1.0.0; the same torch, so that only the libraries differ.
$(PEERS)/.installed: constraints.txt
	test -x $(PEERS)/bin/pip || $(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install "$$(grep '^torch==' constraints.txt)"
	$(PEERS)/bin/python -m pip install "d3rlpy==2.8.1"
	touch $@

train: venv
	$(BIN)/python benchmarks/train.py --algo dmpo --seed 0 --num-threads 1 -P

paper-slice: venv
	$(BIN)/python benchmarks/tables.py
	$(BIN)/python benchmarks/figures.py

test: venv
	$(BIN)/python -m pytest $(PYTEST_ARGS) -m "not slow"

test-slow: venv
	$(BIN)/python -m pytest $(PYTEST_ARGS) -m slow

test-cov: venv
	$(BIN)/python -m pytest $(PYTEST_ARGS) -m "not slow" --cov --cov-report=term-missing

docs: venv
	$(BIN)/python -m sphinx -W -b html docs docs/_build

type: venv
	$(BIN)/python -m mypy

lint: venv
	$(BIN)/ruff check $(LINT_PATHS)

format: venv
	$(BIN)/ruff check --select I --fix $(LINT_PATHS)
	$(BIN)/black $(LINT_PATHS)

check-codestyle: venv
	$(BIN)/ruff check --select I $(LINT_PATHS)
	$(BIN)/black --check $(LINT_PATHS)

commit-checks: check-codestyle type lint

clean:
	rm -rf build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage

.PHONY: help venv peers paper-slice train test test-slow test-cov docs type lint format check-codestyle commit-checks clean
