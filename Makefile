# `make demo` and `make test` are all that a new machine needs: Python 3.11 or newer with pip, make and git. With a C
# compiler (`cc`) on an x86-64 CPU the encoder is a fifth faster.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOCK := infra/requirements.lock
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(LOCK)

.PHONY: install demo test servers bench lint format lock clean

install: $(VENV)/.demo

demo: $(VENV)/.demo
	$(BIN)/varve demo

# Two processes: a test waits for what starts more than it computes. A file stays in one, with the runs that it shares.
test: $(VENV)/.test servers
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

# Object stores and Prometheus for the tests, on machines that have none.
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

# Each extra is installed once, with every version taken from the lock; the install compiles the encoder's inner loops.
$(VENV)/.%: pyproject.toml $(LOCK) infra/build.py $(wildcard pipeline/varve/encoder/kernels/compiled/*.[ch])
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[$*]'
	touch $@

# Resolve anew: newest versions that pyproject.toml allows, tried out by `make test` before they are committed.
lock:
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev,bench]' $(LOCK_WITH)
	$(BIN)/python infra/lock.py > $(LOCK)

clean:
	rm -rf $(VENV) tests/servers/node_modules tests/servers/unpacked demo-output bench-output .pytest_cache .ruff_cache .hypothesis pipeline/varve/encoder/kernels/compiled/*.so
