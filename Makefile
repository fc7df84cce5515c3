# make demo    install, then draw handwritten digits: runs/quickstart/
# make test    install the test extra, then the test suite
PYTHON ?= python3
VENV ?= .venv
ARGS ?=
BIN := $(VENV)/bin
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test test-slow test-newest lint types docs oracle clean

demo: $(VENV)/.experiments
	$(BIN)/python -m experiments.quickstart $(ARGS)

test: $(VENV)/.test
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal -m "not slow" $(ARGS)

test-slow: $(VENV)/.test
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal -m slow $(ARGS)

# the newest Python found, with the newest release of every dependency
test-newest:
	@newest=$$(sh .ci/newest-python) || { echo "make test-newest: no Python newer than 3.11 here; nothing was run"; exit 0; }; \
	echo "make test-newest: $$($$newest --version)"; \
	$$newest -m venv .venv-newest && \
	.venv-newest/bin/python -m pip install --quiet --disable-pip-version-check --upgrade -e '.[test]' && \
	.venv-newest/bin/python -m pytest -n auto --maxprocesses 8 --dist worksteal -m "not slow" $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev $(VENV)/.experiments
	$(BIN)/pyright

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# the table of every method against its oracle
oracle: $(VENV)/.experiments
	$(BIN)/python -m experiments.oracle_table

# one stamp per extra, so that nothing is installed twice
$(VENV)/.%: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) -c constraints.txt -e '.[$*]'
	@touch $@

clean:
	rm -rf .venv .venv-newest .venv-bench site .pytest_cache .ruff_cache
