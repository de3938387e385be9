# ipe-build: the two commands are `make demo` and `make test`; both install what is missing.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

VENV ?= .venv
PYTHON ?= python3
# Test processes: half more than processors, since many of them wait for a guest that waits.
JOBS ?= $(shell echo $$(($$(nproc) * 3 / 2)))
PYTEST_ARGS ?=

.PHONY: demo test lint deps deps-demo bench clean
demo: deps-demo $(VENV)/.installed
	mkdir -p build
	conf/demo/make-rootfs build/demo-rootfs
	$(VENV)/bin/ipe-build build -c conf/demo.toml -o build/demo

test: deps $(VENV)/.installed
	$(VENV)/bin/python -m pytest -n $(JOBS) --dist worksteal $(PYTEST_ARGS)

lint: $(VENV)/.installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

bench: deps $(VENV)/.installed
	$(VENV)/bin/python benchmarks/hashing.py

# Installs the Debian packages of conf/debian-packages.txt that are missing (as root, or with sudo).
deps:
	@conf/install-debian-packages

deps-demo:
	@conf/install-debian-packages --without-tests

$(VENV)/.installed: pyproject.toml $(wildcard setup.py ipe_build/integrity/*.c)
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --config-settings editable_mode=compat --editable '.[dev]'
	touch $@

clean:
	rm -rf build $(VENV)
