# Everything a person runs. Needs only make and Python 3.11, 3.12 or 3.13; what is built stays in this checkout.
# (Newer Pythons have no wheel of fastecdsa yet: docs/dependencies.md.)
SHELL := /bin/bash
PYTHON := $(shell for p in python3.11 python3.12 python3.13 python3; do command -v $$p >/dev/null 2>&1 \
	&& $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
LOCKED := .venv/.locked
STAMP := .venv/.installed
PIP := $(BIN)/python -m pip --quiet
export PIP_CACHE_DIR := $(CURDIR)/.cache/pip
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup demo demo-polyglot test check clean lock wheel vectors simulate bench fuzz interop interop-browser interop-clients

help:
	@echo "make demo [ARGS=...]      a whole network on this machine replays real flights and verifies them"
	@echo "make demo-polyglot        the same flights with peers in JavaScript, Rust and Go (docs/interop.md)"
	@echo "make test [ARGS=...]      format, lint, types, every test"
	@echo "make check                format, lint, types, architecture"
	@echo "make setup                .venv from the lock; the others do it when it is missing or old"
	@echo "make simulate SEEDS=200 FIRST=0 JOBS=2   the whole network in memory, with faults; see docs/testing.md"
	@echo "make bench [ARGS=...]     what it costs beside stock py-libp2p: --json, --quick (docs/performance.md)"
	@echo "make interop [ARGS=...]   peers in Go, Rust and JavaScript against this one: every pairing (docs/interop.md)"
	@echo "make interop-clients      the example clients in Go, Rust and JavaScript in a Python world (docs/clients.md)"
	@echo "make interop-browser      a page in headless Chromium proves an agent's position (needs Chromium)"
	@echo "make fuzz INPUTS=1000000 SEED=0   mutated bytes at every decoder of the wire"
	@echo "make vectors              write interop/vectors again; review the diff"
	@echo "make lock | wheel | clean"

setup: $(STAMP)

# The packages of the lock, and nothing else. `--no-deps`: the lock is the whole set, and .ci/lock says why one of its
# members is not the one that libp2p asks for. Two of them are pure-Python source packages; they are built with the locked
# setuptools and wheel, which therefore come first. The stamp is written last, so a setup that was stopped starts over.
$(LOCKED): .ci/requirements.lock
	@test -n "$(PYTHON)" || { echo "error: python: none of python3.11, python3.12, python3.13, python3 is Python 3.11 to 3.13" >&2; \
		echo "try: install Python 3.11, or make PYTHON=/path/to/python" >&2; exit 2; }
	@echo "setting up .venv with $(PYTHON) (once; about a minute)" >&2
	@rm -rf .venv && $(PYTHON) -m venv .venv
	@awk '/^[^ ]/ { keep = /^(setuptools|wheel)==/ } keep' $< > .venv/build.lock
	@$(PIP) install --no-deps --require-hashes -r .venv/build.lock
	@$(PIP) install --no-deps --require-hashes --no-build-isolation -r $<
	@# libp2p needs trio-typing, whose stubs for an old trio would hide the types that trio brings itself.
	@rm -rf .venv/lib/python3.*/site-packages/trio-stubs
	@touch $@

# This checkout itself. Apart from the lock, so that a changed setting does not cost everybody a new environment.
$(STAMP): $(LOCKED) pyproject.toml
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(STAMP)
	@$(BIN)/aw demo $(ARGS)

demo-polyglot: $(STAMP)
	@$(BIN)/python -m interop.demo $(ARGS)

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -q tests/test_architecture.py

test: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
ifeq ($(strip $(ARGS)),)
	$(BIN)/pytest --numprocesses 2 --dist loadfile --ignore tests/network --ignore tests/crash
	$(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder tests/network tests/crash
else
	$(BIN)/pytest $(ARGS)
endif

simulate: $(STAMP)
	@$(BIN)/python .ci/simulate.py --seeds $(or $(SEEDS),200) --first $(or $(FIRST),0) $(if $(JOBS),--jobs $(JOBS))

bench: $(STAMP)
	@$(BIN)/python -m benchmarks $(ARGS)

interop: $(STAMP)
	@$(BIN)/python -m interop.run $(ARGS)

interop-browser: $(STAMP)
	@$(BIN)/python -m interop.browser $(ARGS)

interop-clients: $(STAMP)
	@$(BIN)/python -m interop.clients $(ARGS)

fuzz: $(STAMP)
	@$(BIN)/python .ci/fuzz.py --inputs $(or $(INPUTS),1000000) --seed $(or $(SEED),0)

vectors: $(STAMP)
	@$(BIN)/python .ci/vectors

lock:
	@PYTHON="$(PYTHON)" .ci/lock $(ARGS)

wheel: $(STAMP)
	@$(PIP) wheel --no-deps --no-build-isolation --wheel-dir dist .

clean:
	rm -rf .venv .cache .hypothesis .mypy_cache .ruff_cache build dist *.egg-info .coverage .coverage.*
	rm -rf interop/go/peer interop/go/submit interop/rust/target interop/rust/Cargo.lock
	rm -rf interop/js/node_modules interop/js/browser/node_modules interop/js/browser/dist
