# ralib from a checkout. Each target makes the environment it needs in VENV; nothing is installed elsewhere.
#
#   make demo    simulate 2,000 particles, classify them, compare with the truth, draw the averages
#   make test    the tests            make quick   those that are fast
#   make lint    style and types
#   make bench   the engine on this machine; the scripts in bench/ measure the rest
#   make lowest  the tests with the oldest libraries pyproject.toml admits
#   make docs    the site in site/, every link and docstring checked
#   make wheel   dist/*.whl           make clean   forget the environments' stamps and the demo's results
#
# Tests run in as many processes as there are processors, four at most, one thread each; a file stays in one process.
# PYTHON, TORCH and CONSTRAINTS are handed to tools/environment, which explains them.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
export PYTHON TORCH
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile

.PHONY: demo test quick lint bench lowest docs wheel clean

demo: $(VENV)/.has-runtime
	$(BIN)/python bench/demo.py demo

test: $(VENV)/.has-test
	$(PYTEST) $(PYTEST_OPTIONS)

quick: $(VENV)/.has-test
	$(PYTEST) -m "not slow" $(PYTEST_OPTIONS)

lint: $(VENV)/.has-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.has-test
	$(BIN)/ralib bench

lowest: $(VENV)-lowest/.has-test
	$(VENV)-lowest/bin/python -m pytest -W default $(PYTEST_OPTIONS)

docs: $(VENV)/.has-docs
	$(BIN)/python -m mkdocs build --strict

wheel: $(VENV)/.has-test
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

$(VENV)/.has-runtime: pyproject.toml requirements/demo.lock tools/environment
	CONSTRAINTS=$${CONSTRAINTS-requirements/demo.lock} tools/environment $(VENV)
	touch $@

$(VENV)/.has-test: pyproject.toml tools/environment
	tools/environment $(VENV) test
	touch $@

$(VENV)/.has-docs: pyproject.toml tools/environment
	tools/environment $(VENV) docs
	touch $@

$(VENV)-lowest/.has-test: pyproject.toml requirements/lowest.txt tools/environment
	CONSTRAINTS=requirements/lowest.txt tools/environment $(VENV)-lowest test
	touch $@

$(VENV)/.has-lint: pyproject.toml tools/environment
	tools/environment $(VENV) lint
	touch $@

clean:
	rm -rf demo dist build $(VENV)/.has-* $(VENV)-lowest
