# `make demo` and `make test` work from a bare checkout with Python 3.11 or later, pip, make and gcc.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
RUN := artifacts/runs/demo-$(shell date -u +%Y%m%d-%H%M%S)

.PHONY: install demo test tests lint fast gpu docs constraints clean

demo: $(STAMP)
	$(BIN)/precision-search run configs/demo.toml --out $(RUN)

install: $(STAMP)

# Side by side: mypy keeps one core busy for a minute, and the tests wait here and there.
test: $(STAMP)
	$(MAKE) --jobs=2 lint tests

# Two workers: most tests wait for one core, and more of them would each take gigabytes. tests/longest_first.py says which
# tests stay together and which come first. At the end every error of docs/reference/errors.md must have happened.
tests: $(STAMP)
	$(BIN)/pytest -n 2 --every-error

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fast: $(STAMP)
	$(BIN)/pytest -m "not slow"

# The tests that need a CUDA device; without one they fail. Installs CUDA's libraries, not its driver.
gpu: $(STAMP)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[cuda,dev,docs]'
	PRECISION_SEARCH_GPU=1 $(BIN)/pytest -m gpu

# A link that leads nowhere, or any other warning, ends it.
docs: $(STAMP)
	$(BIN)/sphinx-build -W -n --keep-going -d build/doctrees docs build/site

# torch is installed first and by its exact version: a range may take a CUDA build of several gigabytes. pip would compile
# 17,000 files, which takes a minute; imports compile the fourth of them that they need.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-compile "$$(grep '^torch==' constraints.txt)"
	$(BIN)/pip install --quiet --no-compile --constraint constraints.txt --editable '.[dev,docs]'
	touch $@

constraints: $(STAMP)
	{ head -n 1 constraints.txt; $(BIN)/pip freeze --exclude-editable | sed 's/+cpu$$//'; } > constraints.new
	mv constraints.new constraints.txt

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
