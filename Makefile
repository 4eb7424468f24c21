# One command per habit, the same on a laptop and in CI. `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
# local: a Kubernetes of our own on this machine; current: the kubectl context, with OPERATOR_IMAGE, TRAINER_IMAGE and
# S3_IMAGE that it can pull; kind: a kind cluster.
CLUSTER ?= local
UV_VERSION := 0.13.9
# Byte code is kept: torch and its kin take seconds to compile, and a hundred tests import them.
unexport PYTHONDONTWRITEBYTECODE
# The machine's own certificate authorities, as pip and curl use them.
export UV_SYSTEM_CERTS := true

UV := .tools/bin/uv --quiet
BIN := .venv/bin
# The environment holds what the tests need, and what the benchmarks need once `make bench-steps` has been called.
KIND := $(if $(wildcard .venv/.for-bench),bench,dev)
READY := .venv/.ready-$(KIND)
UNIT_TESTS := tests/api tests/operator tests/helm tests/examples

# $(call step,WORDS,COMMAND): one line when it is well, everything it said when it is not.
define step
@started=$$SECONDS; if said=$$( { $(2); } 2>&1 ); then printf '  %-58s %4d s\n' '$(1)' $$((SECONDS - started)); \
else printf '%s\n\nFailed: %s\n' "$$said" '$(1)' >&2; exit 1; fi
endef

.PHONY: help quickstart test check static generate format bench-steps bench-trainer bench-prepare bench-apply bench-operator lock venv venv-bench down clean

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' Makefile

quickstart: $(READY) ## from a fresh machine to a Succeeded Finetune (CLUSTER=local|current|kind)
	@$(BIN)/python -m examples.quickstart.run CLUSTER=$(CLUSTER) OPERATOR_IMAGE=$(OPERATOR_IMAGE) \
	  TRAINER_IMAGE=$(TRAINER_IMAGE) S3_IMAGE=$(S3_IMAGE)

test: static ## all tests, on the local cluster too (root; installs missing Debian packages)
	@if [ "$$(id -u)" = 0 ]; then $(BIN)/python -m tests.cluster up --install; \
	else echo 'Not root: the tests that need the local cluster are skipped.'; $(BIN)/python -m tests.cluster build; fi
	@$(BIN)/python -m tests.judge
	@$(BIN)/pytest -q -n 3 --dist loadfile -m 'not cluster'
	@$(BIN)/pytest -q -m cluster

check: static ## seconds: style, types, imports, generated files, chart, pure tests
	$(call step,pure tests,$(BIN)/pytest -q -m 'not cluster and not api_server and not slow' $(UNIT_TESTS))

static: $(READY)
	$(call step,ruff,$(BIN)/ruff check . && $(BIN)/ruff format --check .)
	$(call step,mypy,$(BIN)/mypy && $(BIN)/mypy tests bench examples)
	$(call step,import rules,$(BIN)/lint-imports)
	$(call step,generated files,$(BIN)/python -m finetune_api --check)

generate: $(READY) ## write what is made from the types: CRD, chart's copy, reference pages
	@$(BIN)/python -m finetune_api

format: $(READY) ## format the code and mend what ruff can
	@$(BIN)/ruff check --fix --exit-zero --quiet . && $(BIN)/ruff format --quiet .

bench-steps: venv-bench ## steps/s of the quickstart's training against TRL, written to bench/
	@$(BIN)/python -m bench.steps

bench-trainer: venv-bench ## tokens/s of LoRA and full training against TRL and transformers, written to bench/
	@$(BIN)/python -m bench.trainer

bench-prepare: venv-bench ## rows/s and memory of prepare against datasets.map and TRL, written to bench/
	@$(BIN)/python -m bench.prepare

bench-apply: $(READY) ## time from an applied Finetune to its pod, against a bare loop
	@$(BIN)/python -m bench.apply_to_pod

bench-operator: $(READY) ## the operator under load, against a bare loop, written to bench/ (20 minutes)
	@$(BIN)/python -m bench.operator

venv-bench: $(READY)
	@if [ ! -e .venv/.for-bench ]; then touch .venv/.for-bench && $(MAKE) venv; fi

lock: $(READY) ## compile requirements/*.in to pinned versions with hashes (UPGRADE=1 takes newer ones)
	$(call lock,requirements/bench.in,requirements/bench.txt)
	$(call lock,requirements/dev.in,requirements/dev.txt,-c requirements/bench.txt)
	$(call lock,requirements/operator.in,operator/requirements.txt,-c requirements/bench.txt)
	$(call lock,requirements/trainer.in,trainer-image/requirements.txt,-c requirements/bench.txt)

# $(call lock,INPUT,OUTPUT,OPTIONS): bench.txt holds everything; the others take its versions.
lock = $(call step,$(2),$(UV) pip compile $(1) --output-file $(2) $(3) $(if $(UPGRADE),--upgrade) --universal \
  --python-version 3.11 --generate-hashes --no-emit-index-url --no-header)

venv: $(READY) ## the Python environment in .venv

$(READY): requirements/$(KIND).txt pyproject.toml .tools/uv-$(UV_VERSION)
	@[ -x $(BIN)/python ] || $(UV) venv .venv --python $(PYTHON)
	$(call step,Python packages of requirements/$(KIND).txt,$(UV) pip sync --require-hashes requirements/$(KIND).txt)
	@$(UV) pip install --no-deps --no-build-isolation --editable .
	@touch $@

.tools/uv-$(UV_VERSION):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo 'Python 3.11 or newer is needed; $(PYTHON) is older or missing. Type: make PYTHON=python3.12 …' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
	  DEBIAN_FRONTEND=noninteractive apt-get -qq update && \
	  DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes --no-install-recommends python3-venv >/dev/null; } || { \
	  echo 'Python cannot make environments here. Type: sudo apt-get install python3-venv' >&2; exit 1; }
	$(call step,uv $(UV_VERSION) in .tools,$(PYTHON) -m venv .tools && .tools/bin/pip install -q uv==$(UV_VERSION))
	@touch $@

down: ## stop the local cluster; its images stay
	@$(PYTHON) -m tests.cluster down

clean: ## stop the local cluster and remove it with its images, .venv and all caches in this folder
	@[ "$$(id -u)" != 0 ] || $(PYTHON) -m tests.cluster down --purge
	@rm -rf .venv .tools .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
	@echo "Clean. Built programs and image layers stay in $${XDG_CACHE_HOME:-$$HOME/.cache}/finetune-operator."
