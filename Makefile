# The one task runner of Tidemark: `make help` lists the tasks.
#
# Every task installs what it needs first: packages of Debian (with root, or sudo where that works) and the virtual
# environment. What is there already costs nothing.
#
#   PYTHON=...   the Python from 3.11 on that makes the virtual environment (python3)
#   VENV=...     where that environment lies (.venv)
#   ARGS=...     what the task is to run, and how. One test, or a few, at once and with nothing else:
#                make test ARGS=tests/host/test_files.py::test_a_name        make test ARGS='-k snapshot -x'
#                make test-cluster ARGS='-k landing'                         (on the cluster of `make cluster-up`)
#   VERSION=...  which release `make release` makes: 0.2.0
#   WORKERS=4    how many processes run tests side by side
#   CI=true      what cannot be installed is an error, not a reason to do less

SHELL := /bin/sh
PYTHON ?= python3
VENV ?= .venv
ARGS ?=
VERSION ?=
WORKERS ?= 4

export PYTHON
# Without bytecode each of some thousand processes compiles what it loads: to collect the tests takes 18 s of a processor, not 7.
unexport PYTHONDONTWRITEBYTECODE
export PIP_DISABLE_PIP_VERSION_CHECK := 1

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet
SYSTEM := sh tests/tools/system-packages.sh
STAGE := sh tests/tools/stage.sh
PYTEST := $(BIN)/python -m pytest
# Each test goes to the next free process; those of one group, with what they share, to one.
SIDE_BY_SIDE := -n $(WORKERS) --dist loadgroup --no-loadscope-reorder
# What each test took, for docs/testing.md: $TIDEMARK_REPORTS is the directory for it.
report = $(if $(TIDEMARK_REPORTS),--junitxml=$(TIDEMARK_REPORTS)/$(1).xml)
RIG := env PYTHONPATH=tests/cluster $(BIN)/python -m rig

# What an installation of this tree follows from. The environment's stamps are older than a change of one of these, and
# then the next task installs again, which compiles the protocol files too.
PROTO := proto/hatch_build.py $(wildcard proto/csi_driver/_pb/*.proto)
RUN_STAMP := $(VENV)/.tidemark-run
TEST_STAMP := $(VENV)/.tidemark-test

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test check words format bench soak image release gen clean always system-run system-test system-image \
    system-release \
    cluster-up cluster-down test-cluster system-cluster test-all test-beside-builds test-tools test-side-by-side \
    test-alone scenarios docs

help: ## Shows this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile
	@echo
	@sed -n 's/^#   /  /p' Makefile

demo: system-run $(RUN_STAMP) ## A database, a bad migration and a rollback on this machine, in a pool of its own; ARGS=--step waits for keys, ARGS='--backend lvm' is on LVM
	@$(BIN)/python tests/lvm/demo.py $(BIN)/tidemark $(ARGS)

ifneq ($(ARGS),)
test: system-test $(TEST_STAMP)
	$(PYTEST) $(ARGS)
else
test: ## Runs the checks, then every test that this machine can run; with ARGS only what that names, at once
	@$(STAGE) 'packages and environment' $(MAKE) --no-print-directory system-cluster $(TEST_STAMP)
	@$(STAGE) 'checks' $(MAKE) --no-print-directory check
	@sh tests/tools/meanwhile.sh '$(RIG) prepare' $(MAKE) --no-print-directory test-beside-builds
	@$(STAGE) 'tests one by one' $(MAKE) --no-print-directory test-alone
	@$(MAKE) --no-print-directory test-cluster
endif

test-beside-builds:
	@$(STAGE) 'csi-sanity and helm' $(MAKE) --no-print-directory test-tools
	@$(STAGE) 'tests side by side' $(MAKE) --no-print-directory test-side-by-side

test-tools:
	@sh tests/tools/kubernetes.sh helm >/dev/null & helm=$$!; \
	sh tests/tools/csi-sanity.sh >/dev/null; sanity=$$?; \
	{ wait "$$helm" && [ "$$sanity" -eq 0 ]; } || [ -z "$$CI" ]

test-side-by-side:
	$(PYTEST) $(SIDE_BY_SIDE) -m 'not alone' $(call report,side-by-side)

test-alone:
	$(PYTEST) -m alone $(call report,alone)

ifneq ($(ARGS),)
test-cluster: system-cluster $(TEST_STAMP)
	$(PYTEST) tests/cluster $(ARGS)
else
test-cluster: system-cluster $(TEST_STAMP) ## Runs the scenarios on Kubernetes clusters; those that are not up are made, and removed
	@$(STAGE) 'programs and images of the cluster' $(RIG) prepare || [ -z "$$CI" ]
	@sh tests/tools/clusters.sh $(BIN)/python $(MAKE) --no-print-directory scenarios
endif

# $TIDEMARK_CLUSTERS is how many clusters are up: each takes its share of the processes.
scenarios:
	@$(STAGE) 'scenarios side by side' $(PYTEST) tests/cluster $(SIDE_BY_SIDE) -m 'not disturbs and not alone' $(call report,scenarios-side-by-side)
	@$(STAGE) 'scenarios that disturb their cluster' $(PYTEST) tests/cluster $(SIDE_BY_SIDE) -n $${TIDEMARK_CLUSTERS:-1} -m disturbs $(call report,scenarios-that-disturb)
	@$(STAGE) 'rights' $(PYTEST) tests/cluster -m alone $(call report,rights)

cluster-up: system-cluster $(TEST_STAMP) ## Brings up that cluster here, Tidemark installed; says how to talk to it
	@$(RIG) up $(ARGS)

cluster-down: ## Removes the cluster, and all that it had on this machine
	@$(RIG) down

check: $(TEST_STAMP) ## Checks the code without running it: format, lint, types, layers, retired words, links of the docs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tests/tools/words.py
	$(BIN)/python tests/tools/build_site.py

docs: $(TEST_STAMP) ## Builds the documentation as a site, and refuses dead links and orphan pages: build/site/index.html
	$(BIN)/python tests/tools/build_site.py

words: $(TEST_STAMP) ## Refuses retired words in code, docs and charts (docs/glossary.md)
	$(BIN)/python tests/tools/words.py $(ARGS)

format: $(TEST_STAMP) ## Formats the code, and mends what the linter can mend by itself
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

bench: system-test $(TEST_STAMP) ## Measures all that bench/ can measure, or what ARGS names
	$(BIN)/python -m bench $(ARGS)

soak: system-test system-cluster $(TEST_STAMP) ## Works a pool hard for 20 minutes (ARGS=60: for 60) and schedules for ten, and looks whether anything grows
	$(BIN)/python -m bench.soak $(ARGS)

image: system-image ## Builds the container image, from Debian's packages and PyPI alone; prints its name
	@sh tests/image/build.sh $(ARGS)

release: system-release $(TEST_STAMP) ## Makes all files of a release from the commit: VERSION=0.2.0 (docs/how-to/releases.md)
	@$(BIN)/python -m release --version '$(VERSION)' $(ARGS)

gen: $(RUN_STAMP) ## Compiles the protocol files of proto/ again
	$(PIP) --no-deps --editable .

clean: ## Removes what the tasks have made in this tree; caches outside of it stay
	@if [ -e $(VENV)/pyvenv.cfg ]; then rm -rf $(VENV); fi
	rm -rf csi_driver/_pb build dist .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name .git -prune -o -name __pycache__ -prune -exec rm -rf {} +

# The Debian packages of a task. Without them there is less to see, and that is said; the tasks that cannot do without
# say so themselves.
system-run:
	@$(SYSTEM) run || [ -z "$$CI" ]

system-test:
	@$(SYSTEM) run test image || [ -z "$$CI" ]

system-image:
	@$(SYSTEM) image

system-release:
	@$(SYSTEM) image release || [ -z "$$CI" ]

system-cluster:
	@$(SYSTEM) run test image cluster || [ -z "$$CI" ]

# Generated code that was removed under a stamp, and an environment whose Python is gone, are made again.
ifneq ($(shell [ -e csi_driver/_pb/csi_pb2.py ] && [ -x $(BIN)/python ] && echo there),there)
$(RUN_STAMP): always
endif

$(RUN_STAMP): pyproject.toml $(PROTO)
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) || { \
	    echo 'This needs Python 3.11 or newer with its module venv: Debian has it in python3-venv; or name one by PYTHON=...' >&2; \
	    exit 1; }
	@echo 'Installing Tidemark into $(VENV)'
	@$(PIP) --editable .
	@touch $@

# pip knows dependency groups from 25.1 on. Bytecode is made of what is loaded: of the Kubernetes client that is very little.
$(TEST_STAMP): pyproject.toml $(RUN_STAMP)
	@echo 'Installing the tools of the tests into $(VENV)'
	@$(PIP) --upgrade 'pip>=25.1'
	@$(PIP) --no-compile --group test --editable '.[controller]'
	@touch $@
