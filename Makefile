# The targets that people, hooks and CI share. No variable needs to be set.
PYTHON ?= python3
PORT ?= 4200
MLFLOW_PORT ?= 5000

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export DO_NOT_TRACK := true
export DVC_NO_ANALYTICS := 1

.DEFAULT_GOAL := help
.PHONY: help run test fuzz kill-test bench format server mlflow lock deps hook clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 18

run: $(INSTALLED) ## Take the data that params.yaml names to a promoted model
	$(BIN)/trueline run

test: $(INSTALLED) ## The whole check: format, lint, types, import contracts, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest

fuzz: $(INSTALLED) ## The tests of random input, with SEEDS of them (10000) in place of a minute's worth
	TRUELINE_FUZZ_SEEDS=$(or $(SEEDS),10000) $(BIN)/python -m pytest -m fuzz --timeout=0

kill-test: $(INSTALLED) ## Kill every stage and command at random moments, KILLS (70) times: half an hour on 2 cores
	$(BIN)/python -m tests.kill_campaign --kills $(or $(KILLS),70)

bench: $(INSTALLED) ## Our trainers beside TRL's and a plain PPO: about an hour on 2 cores
	$(BIN)/python -m benchmarks $(BENCH)

format: $(INSTALLED) ## Mend format and what ruff can mend of the rest
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

lock: ## Make requirements.lock again: the newest versions that pyproject.toml allows
	rm -rf $(VENV)-lock
	$(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/python -m pip install --editable '.[test]'
	$(VENV)-lock/bin/python -m pip check
	( sed '/^#/!d' requirements.lock; \
	  $(VENV)-lock/bin/python -m pip freeze --exclude-editable | sed 's/+cpu$$//' ) > requirements.lock.new
	mv requirements.lock.new requirements.lock
	rm -rf $(VENV)-lock

deps: $(INSTALLED) ## Print the code dependencies that dvc.yaml should list
	$(BIN)/python -m tests.test_dvc

hook: ## Have git check format and lint before every commit
	printf '#!/bin/sh\n.venv/bin/ruff format --check . && .venv/bin/ruff check .\n' > .git/hooks/pre-commit
	chmod +x .git/hooks/pre-commit

clean: ## Remove the virtual environment and caches; data, models and the record stay
	rm -rf $(VENV) $(VENV)-lock .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

# The stamp comes last: an interrupted install is begun again. Only another lock file makes the environment anew.
$(INSTALLED): requirements.lock
	rm -rf $(VENV)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make run PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --requirement requirements.lock
	$(BIN)/python -m pip install --no-deps --editable .
	$(BIN)/python -m pip check
	cp requirements.lock $@
