# Everything a person runs. Needs only make and Python >= 3.11; writes nothing outside this checkout.
SHELL := /bin/bash
PYTHON := $(shell for p in python3.11 python3.12 python3.13 python3; do command -v $$p >/dev/null 2>&1 \
	&& $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
STAMP := .venv/.locked
export PIP_CACHE_DIR := $(CURDIR)/.cache/pip
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup demo test check clean lock wheel vectors simulate

help:
	@echo "make demo [ARGS=...]      a whole network on this machine replays real flights and verifies them"
	@echo "make test [ARGS=...]      format, lint, types, every test"
	@echo "make check                format, lint, types, architecture"
	@echo "make simulate SEEDS=200 FIRST=0   the whole loop in memory, with faults"
	@echo "make vectors              write interop/vectors again; review the diff"
	@echo "make lock | wheel | clean"

setup: $(STAMP)

$(STAMP): .ci/requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "error: python: none of python3.11, 3.12, 3.13, python3 is 3.11 or newer" >&2; exit 2; }
	@echo "setting up .venv with $(PYTHON) (once; about a minute)" >&2
	@rm -rf .venv && $(PYTHON) -m venv .venv
	@grep -A 99 -E '^(setuptools|wheel)==' .ci/requirements.lock | awk '/^[a-z]/{keep=($$1 ~ /^(setuptools|wheel)==/)} keep' > .venv/build.lock
	@$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r .venv/build.lock
	@# --no-deps: the lock is the whole set, see .ci/lock. The two pure-Python source packages in it need no compiler.
	@$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --require-hashes -r .ci/requirements.lock
	@# libp2p needs trio-typing, whose stubs for an old trio would hide the types that trio brings itself.
	@rm -rf .venv/lib/python3.*/site-packages/trio-stubs
	@$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(STAMP)
	@$(BIN)/aw demo $(ARGS)

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -q tests/test_architecture.py

test: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest $(ARGS)

simulate: $(STAMP)
	$(BIN)/python -m tests.simulation --seeds $(or $(SEEDS),200) --first $(or $(FIRST),0)

vectors: $(STAMP)
	$(BIN)/python .ci/vectors.py

lock:
	.ci/lock

wheel: $(STAMP)
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

clean:
	rm -rf .venv .cache .hypothesis .mypy_cache .ruff_cache build dist *.egg-info
