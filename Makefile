# Descent: `make help` lists the targets. Everything is installed into .venv; nothing needs root.
.DEFAULT_GOAL := help
.PHONY: help install demo up test screenshots chaos docs check check-native format lock clean

# The first interpreter Paddle supports (3.11-3.13) that can make a virtual environment; PYTHON=... overrides it.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && { echo $$p; break; }; done)
BIN := .venv/bin

# make up PORT=8001 HOME_DIR=/data/descent
ifdef PORT
export DESCENT_PORT := $(PORT)
endif
ifdef HOME_DIR
export DESCENT_HOME := $(HOME_DIR)
endif
EPOCHS ?= 1

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  Variables: PORT=8000 HOME_DIR=.descent EPOCHS=1 PYTHON=python3.12, and every DESCENT_ setting of the README"

.venv/.made:
	@test -n "$(PYTHON)" || { echo "Descent needs Python 3.11, 3.12 or 3.13 with venv (on Debian: python3-venv). Or name one: make PYTHON=/path/to/python"; exit 1; }
	@echo "Setting up .venv with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv --clear .venv
	@touch $@

# Skipped while the lock file and pyproject.toml are unchanged.
.venv/.installed: .venv/.made requirements.lock pyproject.toml
	@echo "Installing (Paddle is large: the first time takes a minute or two)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

.venv/.tested: .venv/.installed requirements-dev.lock
	@echo "Installing what the tests need"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	@touch $@

install: .venv/.installed ## set up .venv (skipped when nothing changed)

demo: .venv/.installed ## train the lesson's network over REST, download it, predict digits (EPOCHS=5 for the whole lesson)
	@$(BIN)/descent demo --epochs $(EPOCHS)

up: .venv/.installed ## run the server in the foreground on 127.0.0.1:8000; Ctrl-C stops it
	@$(BIN)/descent up

# The page's tests drive Debian's chromium, those of TLS its redis-server, which is only unpacked into .venv. Where one is missing
# and cannot be had, its tests are left out (not with CI=true).
test: .venv/.tested ## all tests, on each core some; installs chromium where it is missing and that is allowed
	@$(BIN)/python -m tests.browser
	@$(BIN)/python -m tests.tls_redis
	@$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

screenshots: .venv/.tested ## take the pictures of the page in docs/images anew, of a real server; needs chromium
	@$(BIN)/python -m tests.browser --fonts
	@$(BIN)/python -m tests.screenshots

SEED ?= 1
MINUTES ?= 30
chaos: .venv/.tested ## faults without end on a real server, and whether every job kept its promises (SEED=1 MINUTES=30)
	@$(BIN)/python -m tests.chaos --seed $(SEED) --minutes $(MINUTES)

check: .venv/.tested ## format, lint and strict types
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/biome check --log-level=warn web

# The C++ kernel by itself, for the widest vectors of this machine and the smaller ones. Needs nothing but a C++ compiler.
VECTORS = "" "-march=native" $(if $(filter x86_64,$(shell uname -m)),"-march=native -mno-avx512f")
SANITIZED = $(CXX) -std=c++17 -O1 -g -fopenmp -Wall -Wextra -Werror -fsanitize=address,undefined -fno-sanitize-recover=all
check-native: ## the fused kernel's own tests under the address and undefined-behaviour sanitizers
	@work=$$(mktemp -d) && trap 'rm -rf "$$work"' EXIT && for vectors in $(VECTORS); do \
		$(SANITIZED) $$vectors core/training/fused/source/fused.cc tests/native/fused_test.cc -o "$$work/fused_test" \
		&& OMP_NUM_THREADS=2 "$$work/fused_test" || exit 1; done

docs: .venv/.tested ## write docs/reference.md anew from the code
	@$(BIN)/python -m tests.reference

format: .venv/.tested ## format and mend the imports
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .
	@$(BIN)/biome check --write --log-level=warn web

UV_COMPILE = $(BIN)/uv pip compile pyproject.toml --extra ui --extra flower --extra s3 --extra otel --universal --generate-hashes --no-emit-index-url --quiet \
	--custom-compile-command 'make lock' $(if $(UPGRADE),--upgrade)
lock: .venv/.installed ## write the lock files anew (UPGRADE=1 takes newer versions)
	@$(BIN)/python -m pip install --quiet uv
	@$(UV_COMPILE) --group build -o requirements.lock
	@$(UV_COMPILE) --group build --group dev --constraint requirements.lock -o requirements-dev.lock

clean: ## remove .venv and caches (never .descent, which holds your jobs)
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache
