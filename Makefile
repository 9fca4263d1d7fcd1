# The one list of commands. `make` alone prints it. Everything is installed into .venv here, and nowhere else.
#
# PYTHON  the interpreter that .venv is made from (gpu-check: the one that runs it)     make test PYTHON=python3.12
# TORCH   the torch to install, as pip spells a requirement                             make demo TORCH=torch==2.12.0
# ARGS    more arguments for the tool behind demo, test and gpu-check                   make test ARGS="-k packed"
# OUT     where gpu-check writes its results                                            make gpu-check OUT=results

PYTHON ?= python3
TORCH ?= torch==2.13.0
ARGS ?=
OUT ?= build/gpu-check

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip -qq --disable-pip-version-check --log $(VENV)/pip.log
SOURCES := pyproject.toml setup.py fastlstm/version.py $(wildcard csrc/*)
# pyproject.toml is the one list of what a build needs
BUILD_NEEDS = $(shell $(BIN)/python -c "import tomllib; print(*map(repr, tomllib.load(open('pyproject.toml', 'rb'))['build-system']['requires']))")

.DELETE_ON_ERROR:
.PHONY: help demo test lint bench wheel gpu-check clean FORCE

help:  ## print this list
	@sed -n 's/^\([a-z-]*\):.*##/\1/p' Makefile | awk '{ name = $$1; $$1 = ""; printf "make %-10s%s\n", name, $$0 }'

demo: $(VENV)/run.stamp  ## set up, then train nn.LSTM and fastlstm.LSTM side by side on real text
	$(BIN)/fastlstm train --compare torch $(ARGS)

test: $(VENV)/dev.stamp  ## set up, then run every test
	$(BIN)/pytest --durations=12 $(ARGS)

lint: $(VENV)/dev.stamp  ## ruff (lint and format) and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# PyTorch's own modules at every case; other peers, and what PyTorch lacks, at some. torch.compile of a loop takes minutes: one case
BENCH := $(BIN)/fastlstm bench --json benchmarks/results
OWN := --variant peephole_lstm --variant cifg_lstm
SOME := $(patsubst %,--case %,darts deepar ppo codec translate square)
bench: $(VENV)/dev.stamp  ## measure speed: JSON in benchmarks/results, and the README's tables and picture from it
	$(BENCH) --variant lstm --variant gru --case square --case translate --dtype bf16 --against fp32 --against torch
	$(BENCH) --variant lstm --variant gru
	$(BENCH) --add --variant gru $(OWN) --variant cifg_peephole_lstm $(SOME) --against lstm
	$(BENCH) --add --variant lstm --variant gru $(OWN) $(SOME) --against cell
	$(BENCH) --add --variant lstm --variant gru --case ppo-resets --case control-resets --against cut
	$(BENCH) --add --variant lstm --variant gru --case packed --case tagger-lengths --against dense
	$(BENCH) --add --variant lstm --variant gru $(OWN) --case darts --case ppo --case square --against onnx --mode infer
	$(BENCH) --add $(OWN) --case darts --against compile --against compile-ours --mode train
	$(BIN)/fastlstm bench --readme "$$(ls -t benchmarks/results/*.json | head -n 1)"

wheel: $(VENV)/dev.stamp  ## build dist/fastlstm-*.whl
	rm -rf build/lib* build/bdist* dist
	$(PIP) wheel --no-deps --no-build-isolation --wheel-dir dist .
	@ls dist/*.whl

# Uses PYTHON as it is, installs nothing and needs no network: the package is built beside the checkout's sources
gpu-check:  ## parity and speed on a GPU, with the torch that PYTHON already has
	@if ! $(PYTHON) -c "import torch" 2>/dev/null; then \
	    echo "gpu-check: no torch in '$(PYTHON)': name one that has it, make gpu-check PYTHON=..."; exit 1; \
	elif ! $(PYTHON) -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then \
	    echo "gpu-check: no GPU here (torch.cuda.is_available() is False in '$(PYTHON)'), so nothing was run."; \
	else \
	    $(MAKE) --no-print-directory on-gpu; \
	fi

clean:  ## remove .venv and everything that was built
	rm -rf $(VENV) build dist fastlstm.egg-info fastlstm/*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: on-gpu
GPU_LIB := build/gpu
on-gpu:
	rm -rf $(GPU_LIB)
	$(PYTHON) setup.py --quiet build --build-lib $(GPU_LIB)
	mkdir -p $(OUT)
	PYTHONPATH=$(GPU_LIB) $(PYTHON) -P -m fastlstm info --json > $(OUT)/info.json
	PYTHONPATH=$(GPU_LIB) $(PYTHON) -P -m fastlstm parity --device cuda --json $(OUT)/parity.json
	PYTHONPATH=$(GPU_LIB) $(PYTHON) -P -m fastlstm bench --device cuda --json $(OUT)/bench.json $(ARGS)

# The set-up. torch is named in every pip call, so that no other requirement can bring another one.

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "fastlstm needs Python 3.11 or later; '$(PYTHON)' is $$($(PYTHON) --version 2>&1). Name another: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	    echo "'$(PYTHON)' cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv"; exit 1; }

$(VENV)/torch.txt: FORCE | $(BIN)/python
	@echo '$(TORCH)' | cmp -s - $@ || echo '$(TORCH)' > $@

$(VENV)/run.stamp: $(SOURCES) $(VENV)/torch.txt
	$(call set-up,plot)
	@touch $@

$(VENV)/dev.stamp: $(SOURCES) $(VENV)/torch.txt
	$(call set-up,plot$(comma)test$(comma)lint)
	@touch $@ $(VENV)/run.stamp

# progress is shown, warnings only where it failed
install = $(PIP) install '$(TORCH)' $(1) 2> $(VENV)/pip.err || { cat $(VENV)/pip.err; exit 1; }
comma := ,
define set-up
@echo "Setting up $(VENV) with $(TORCH); the first time this takes minutes. Log: $(VENV)/pip.log"
@$(call install,$(BUILD_NEEDS))
@$(call install,--no-build-isolation --editable '.[$(1)]')
@$(BIN)/python -c "from fastlstm.backends import extension_status as s; s() == 'built' or print(f'fastlstm: the C++ extension is {s()}. It runs without, slower; to mend it: install g++ >= 11, touch setup.py, make again.')"
endef
