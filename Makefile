# `make train` and `make test` install what they need first.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# A dataset to train on: a folder, or the id of one on the Hugging Face hub (which is then downloaded); none: collect one.
DATASET ?=
# Any keys to override, such as ARGS="seed=1 offline.steps=500".
ARGS ?=

export SDL_VIDEODRIVER ?= dummy
export MUJOCO_GL ?= egl

.PHONY: help setup train test test-slow test-long lint format lock clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(VENV)/.installed ## install robolearn and its dependencies into .venv

$(VENV)/.installed: pyproject.toml constraints.txt scripts/setup.sh
	PYTHON=$(PYTHON) VENV=$(VENV) scripts/setup.sh
	@touch $@

train: setup ## collect, train and evaluate; on a dataset: make train DATASET=path/or/hub_id
	BIN=$(BIN) scripts/train.sh "$(DATASET)" $(ARGS)

test: setup ## the fast tests
	$(BIN)/python -m pytest -n 2 --dist worksteal --durations 10 $(ARGS)

test-slow: setup ## the tests that take minutes
	$(BIN)/python -m pytest -m "slow and not long" -n 2 --dist loadfile --durations 10 $(ARGS)

test-long: setup ## the long forms: every docs command, bundle, wheel, kills, several processes, SLURM (an hour)
	$(BIN)/python -m pytest -m long -n 2 --dist loadfile --durations 10 $(ARGS)

lint: setup ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python

format: setup ## reformat the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: setup ## write the installed versions to constraints.txt
	BIN=$(BIN) scripts/lock.sh > constraints.txt.new && mv constraints.txt.new constraints.txt

clean: ## remove the virtual environment and caches, not the runs
	rm -rf $(VENV) .pytest_cache .ruff_cache dist
