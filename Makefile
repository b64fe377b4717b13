# Two commands for everybody: `make run` and `make test`. The others are for developers, see CONTRIBUTING.md. Each installs
# what it needs into .venv first; luacheck is Debian's package lua-check.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# mitmproxy asks for an older h11 than the gateway takes, so its addon is tested in an environment of its own.
MITMPROXY := $(VENV)/mitmproxy
# What `make run` needs is a small part of what the tests need.
RUN_STAMP := $(VENV)/.installed-to-run
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# uv installs a developer's packages in a fifth of pip's time. It trusts the system's certificates, as pip does, and takes
# the Pythons that are there.
UV := $(BIN)/uv pip install --quiet
export UV_SYSTEM_CERTS := 1
export UV_PYTHON_DOWNLOADS := never

# Each worker has servers of its own; a file's tests stay together, since they share them. Four workers keep two cores busy,
# since many tests wait. The files go in their order: by number of tests, the longest would come last. A crashed worker ends
# the run: xdist would wait for its tests without end.
ALL_TESTS := --numprocesses=4 --dist=loadfile --no-loadscope-reorder --max-worker-restart=0
# The tests start hundreds of Python processes, which load faster what is compiled.
unexport PYTHONDONTWRITEBYTECODE

# tox finds each Python on PATH. pyenv puts only the selected versions there.
TOX := PATH="$$PATH$(subst $() ,,$(patsubst %,:%,$(wildcard $(HOME)/.pyenv/versions/3.1[1-3].*/bin)))" $(BIN)/tox
QUICK := quick-py311,quick-py312,quick-py313
SMOKE := smoke-py311,smoke-py312,smoke-py313

.PHONY: run test test-quick test-all check format hooks build bench soak hostile failovers servers clean

run: $(RUN_STAMP)  ## a demo: a gateway with an embedded store, a catalog, a proxy, and the calls of a CI run
	$(BIN)/python examples/demo.py

# A part of the tests covers a part of the code: with TESTS nothing is measured.
test: $(STAMP)  ## all tests, and the branches that they cover, or TESTS="-k views"; each test starts the redis-server it needs
ifdef TESTS
	$(BIN)/python -m pytest $(TESTS)
else
	rm -rf build/coverage
	$(BIN)/coverage run -m pytest $(ALL_TESTS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report
endif

test-quick: $(STAMP)  ## the quick part of the tests with each of Python 3.11 to 3.13 that is installed
	$(TOX) run-parallel --parallel-no-spinner -e $(QUICK)

test-all: $(STAMP)  ## all tests with each of Python 3.11 to 3.13 that is installed
	$(TOX) run

check: $(STAMP)  ## lint, format, types, imports, spelling, Lua, generated files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/codespell
	$(BIN)/python .ci/unasync.py --check
	$(BIN)/python tests/support/lua.py build/lua
	luacheck --quiet build/lua

build: $(STAMP)  ## sdist and wheel into dist/; the wheel is tried in an empty environment of each Python
	rm -rf dist
	$(BIN)/python -m build --installer=uv
	$(TOX) run-parallel --parallel all --parallel-no-spinner -e $(SMOKE) --installpkg dist/*.whl

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

hooks: $(STAMP)  ## run the quick checks before each commit
	$(BIN)/pre-commit install

bench: $(STAMP)  ## all benchmarks, or BENCH="lookup sync"; BENCH_OPTIONS="--rounds 3", --quick or --check
	$(BIN)/python -m benchmarks $(BENCH) $(BENCH_OPTIONS)

soak: hostile failovers  ## hostile input and failovers; then the guarantee under faults, for an hour; SOAK="--minutes 10 --seed 7", or --help
	$(BIN)/python -m tests.faults.checker $(SOAK)

hostile: $(STAMP)  ## hostile input to a gateway on both stores, for some minutes; HOSTILE="--seed 7", or --help
	$(BIN)/python -m tests.hostile $(HOSTILE)

failovers: $(STAMP)  ## durable writes: the primary is killed after each of 200, for each driver with one and two replicas
	FAILOVERS=200 $(BIN)/python -m pytest -q tests/faults/test_durable.py -k no_acknowledged --timeout=1200

servers:  ## build Redis 8 and Valkey 8 into build/servers; then make test REDIS_SERVER=build/servers/valkey-server
	.ci/servers

clean:
	rm -rf $(VENV) .tox build dist

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(RUN_STAMP): pyproject.toml | $(BIN)/python
	$(PIP) --editable '.[gateway,cli,embedded]'
	touch $@

$(STAMP): pyproject.toml | $(BIN)/python
	$(PIP) uv
	$(UV) --python $(BIN)/python --editable '.[dev]'
	$(PYTHON) -m venv --without-pip $(MITMPROXY)
	$(UV) --python $(MITMPROXY)/bin/python --editable '.[mitmproxy]' coverage
	touch $@ $(RUN_STAMP)
