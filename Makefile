# vlmbench: `make demo` and `make test` work on a fresh machine; both set up .venv first.
SHELL := /bin/bash
# Which Python makes .venv; empty: the first of python3, python3.12, python3.11 that is 3.11 or 3.12.
PYTHON ?=
# `make setup HASHES=no`: by version alone, where an index serves files of its own; otherwise each file's hash is checked.
HASHES ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
# Two tests at a time: each process has half of the tests, in order, so that what the tests of a file share is mostly made
# once, and whoever is done takes some of the other's. PYTEST_ARGS="-x tests/cost" and the like choose other tests.
PYTEST_ARGS ?= -n 2 --dist=worksteal
# A machine with an NVIDIA GPU takes the index's default torch; one without takes a CPU build where there is one.
GPU := $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -c GPU)

.DEFAULT_GOAL := help
.PHONY: help setup demo quick docs test test-slurm test-vllm coverage-models fuzz lint types phase1 phase2 phase3 study bench clean

help:  ## what there is
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 18

setup: $(STAMP)  ## virtual environment in .venv with everything

$(STAMP): pyproject.toml constraints.txt hashes.txt scripts/setup.sh
	bash scripts/setup.sh "$(PYTHON)" "$(VENV)" "$(GPU)" "$(HASHES)"
	@touch $@

demo: $(STAMP)  ## the main job on the default tiny model: where does the latency go?
	$(BIN)/python -m vlmbench experiment=phase1 $(ARGS)

phase1: $(STAMP)  ## latency distribution and component profile (ARGS="model=… dataset=…")
	$(BIN)/python -m vlmbench experiment=phase1 $(ARGS)

phase2: $(STAMP)  ## vision tokens and FLOPs against latency
	$(BIN)/python -m vlmbench experiment=phase2 $(ARGS)

phase3: $(STAMP)  ## output tokens against latency
	$(BIN)/python -m vlmbench experiment=phase3 $(ARGS)

study: $(STAMP)  ## the whole study: phases 1, 2, 3 and the token comparison
	$(BIN)/python -m vlmbench experiment=all $(ARGS)

test: $(STAMP) lint  ## linters, types and all tests that can run here
	@$(BIN)/mypy & types=$$!; scripts/test.sh $(BIN)/python $(PYTEST_ARGS); tests=$$?; wait $$types && exit $$tests

quick: $(STAMP)  ## what needs no model and no process: ruff, import contracts, known answers; under a minute
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -q -m quick -n 2 --dist=worksteal tests

docs: $(STAMP)  ## the site in site/, to be read from disk; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

test-slurm: $(STAMP)  ## the grid tests on a real Slurm on loopback (installs Debian's packages as root)
	scripts/test-slurm.sh $(BIN)/python

test-vllm:  ## the tests of runtime=vllm on vLLM's CPU build, in .venv-vllm (3.3 GB, set up from nothing)
	PYTHON="$(or $(PYTHON),$(wildcard $(BIN)/python),python3)" scripts/test-vllm.sh $(VENV)-vllm $(VLLM_ARGS)

# How many cases `make fuzz` makes.
CASES ?= 10000
fuzz: $(STAMP)  ## random command lines, configurations, rows, questions, requests, damaged files, secrets of a study
	VLMBENCH_FUZZ=$(CASES) $(BIN)/python -m pytest -q -n 0 --timeout=7200 tests/test_fuzz.py tests/test_corruption.py tests/secrets

coverage-models: $(STAMP)  ## every architecture of transformers: stages and a timeline; writes docs/models.md
	$(BIN)/python scripts/coverage_models.py

lint: $(STAMP)  ## ruff
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(STAMP)  ## mypy --strict
	$(BIN)/mypy

bench: $(STAMP)  ## benchmarks of the instrument itself (prints figures)
	for b in benchmarks/*.py; do echo "== $$b"; $(BIN)/python $$b || exit 1; done

clean:  ## remove the environment and caches, keep results
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
