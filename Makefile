# `make demo` and `make test` need Python 3.11 or newer with pip, make and git. With a C compiler (`cc`) on an x86-64
# CPU the encoder is a fifth faster.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOCK := infra/requirements.lock
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(LOCK)

.PHONY: install demo test test-fast test-newest test-lakes lakes servers bench lint format lock clean

install: $(VENV)/.demo

demo: $(VENV)/.demo
	$(BIN)/varve demo

# Two processes, because tests spend most time waiting for servers and Ray. The tests of a file share runs, so they stay
# in one process.
test: $(VENV)/.test servers
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --ignore tests/engines

# The tests for daily work: no servers, no Ray, none that takes seconds.
test-fast: $(VENV)/.test
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile -m "not slow" tests/unit tests/property

# The tests with the newest versions that pyproject.toml allows, in an environment of its own.
test-newest: servers
	rm -rf $(VENV)-newest
	$(PYTHON) -m venv $(VENV)-newest
	$(VENV)-newest/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[test]' $(NEWEST_WITH)
	$(VENV)-newest/bin/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --ignore tests/engines

# Other engines read what Varve writes to lake tables, and write tables that it reads. In one process: all tests share
# one Spark.
test-lakes: $(VENV)/.test servers lakes
	$(BIN)/python -m pytest tests/engines

# Environments of these engines, each with its own versions.
lakes: $(VENV)-spark/.done $(VENV)-sail/.done $(VENV)-duckdb/.done

$(VENV)-%/.done: infra/lake-engines/%.txt
	rm -rf $(VENV)-$*
	$(PYTHON) -m venv $(VENV)-$*
	$(VENV)-$*/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	touch $@

# Installs the tests' object stores, Prometheus and Chromium if they are missing.
servers:
	infra/servers.sh

bench: $(VENV)/.bench
	$(BIN)/python -m tests.bench.encode
	$(BIN)/python -m tests.bench.pipeline

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Each extra is installed once, with all versions from the lock; the install compiles the encoder's CPU kernels.
$(VENV)/.%: pyproject.toml $(LOCK) infra/build.py $(wildcard pipeline/varve/encoder/kernels/compiled/*.[ch])
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[$*]'
	touch $@

# Writes a new lock with the newest versions that pyproject.toml allows. Run `make test` before committing it.
lock:
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev,bench]' $(LOCK_WITH)
	$(BIN)/python infra/lock.py > $(LOCK)

clean:
	rm -rf $(VENV) $(VENV)-newest $(VENV)-spark $(VENV)-sail $(VENV)-duckdb tests/servers/node_modules tests/servers/unpacked demo-output bench-output .pytest_cache .ruff_cache .hypothesis pipeline/varve/encoder/kernels/compiled/*.so
