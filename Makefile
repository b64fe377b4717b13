# Two commands for everybody: `make run` and `make test`. For developers: `make check` (luacheck is Debian's lua-check),
# `make format`, `make bench`, `make soak`, `make clean`. Each installs what it needs into .venv first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# What `make run` needs is a small part of what the tests need.
RUN_STAMP := $(VENV)/.installed-to-run
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable

# Each worker has servers of its own; a file's tests stay together, since they share them.
TESTS ?= --numprocesses=2 --dist=loadfile

.PHONY: run test check format bench soak clean

run: $(RUN_STAMP)  ## the gateway on an embedded store; prints a key and curl lines to try
	SESSIONSTORE_REDIS_URL= $(BIN)/python -m gateway

test: $(STAMP)  ## all tests, or TESTS="-k views"; those that need a redis-server start their own
	$(BIN)/python -m pytest $(TESTS)

check: $(STAMP)  ## lint, format, types, Lua
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python tests/support/lua.py build/lua
	luacheck --quiet build/lua

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)  ## all benchmarks, or BENCH="lookup sync"; BENCH_OPTIONS="--rounds 3", --quick or --check
	$(BIN)/python -m benchmarks $(BENCH) $(BENCH_OPTIONS)

soak: $(STAMP)  ## the guarantee under faults, for an hour; SOAK="--minutes 10 --seed 7", or --help
	$(BIN)/python -m tests.faults.checker $(SOAK)

clean:
	rm -rf $(VENV) build dist

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(RUN_STAMP): pyproject.toml | $(BIN)/python
	$(INSTALL) '.[gateway,cli]'
	touch $@

$(STAMP): pyproject.toml | $(BIN)/python
	$(INSTALL) '.[dev]'
	touch $@ $(RUN_STAMP)
