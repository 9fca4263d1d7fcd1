# The one list of commands. `make` alone prints it. Everything is installed into .venv here, and nowhere else.
#
# PYTHON  the interpreter that .venv is made from (gpu-check: the one that runs it)     make test PYTHON=python3.12
# TORCH   the torch to install, as pip spells a requirement                             make demo TORCH=torch==2.12.0
# ARGS    more arguments for the tool behind demo, test and gpu-check                   make test ARGS="-k packed"
# CPU     a lesser CPU to test as: avx512, avx2 or portable                             make test CPU=avx2 ARGS="-m cpu"
# PYTHONS those to build wheels for; without it, all here       make wheels PYTHONS="python3.11 python3.13"
# TORCHES those to use wheels beside; lent: that of .venv       make wheels TORCHES="torch==2.11.0 torch"
# OUT     where gpu-check writes its results                                            make gpu-check OUT=results

PYTHON ?= python3
TORCH ?= torch==2.13.0
ARGS ?=
CPU ?=
PYTHONS ?=
TORCHES ?= torch==2.11.0 torch
OUT ?= build/gpu-check

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip -qq --disable-pip-version-check --log $(VENV)/pip.log
SOURCES := pyproject.toml setup.py fastlstm/version.py $(wildcard csrc/* csrc/*/*)
# pyproject.toml is the one list of what a build needs, and of what a use of it does
READ = $(shell $(BIN)/python -c "import tomllib; all = tomllib.load(open('pyproject.toml', 'rb')); print(*map(repr, $(1)))")
BUILD_NEEDS = $(call READ,all['build-system']['requires'])
NEEDS = $(call READ,sum((all['project']['optional-dependencies'][e] for e in '$(1)'.split()), all['project']['dependencies']))

.DELETE_ON_ERROR:
.PHONY: help demo test machine-code sanitize lint docs bench wheels gpu-check clean FORCE

help:  ## print this list
	@sed -n 's/^\([a-z-]*\):.*##/\1/p' Makefile | awk '{ name = $$1; $$1 = ""; printf "make %-14s%s\n", name, $$0 }'

demo: $(VENV)/run.stamp  ## set up, then train nn.LSTM and fastlstm.LSTM side by side on real text
	$(BIN)/fastlstm train --compare torch $(ARGS)

# What oneDNN, ATen, MKL and we may use: as much as a CPU of that kind has. (Inductor keeps its code for each kind alike.)
AS_avx512 := ONEDNN_MAX_CPU_ISA=AVX512_CORE ATEN_CPU_CAPABILITY=avx512 MKL_ENABLE_INSTRUCTIONS=AVX512
AS_avx2 := ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2
AS_portable := ONEDNN_MAX_CPU_ISA=SSE41 ATEN_CPU_CAPABILITY=default MKL_CBWR=COMPATIBLE
# a process that dies ends the run: one that takes its place may wait for ever
PROCESSES := -n logical --maxprocesses 4 --max-worker-restart 0 --dist loadfile --no-loadscope-reorder
test: $(VENV)/dev.stamp  ## set up, then run every test
	$(if $(CPU),$(AS_$(CPU)) TORCHINDUCTOR_CACHE_DIR=build/inductor-$(CPU)) $(BIN)/pytest --durations=12 $(PROCESSES) $(CPU:%=--path=%) $(ARGS)

# What depends on the CPU, in one process: .ci/run has two lesser CPUs side by side. Most of it is in one file
lesser-%: $(VENV)/dev.stamp
	$(MAKE) test CPU=$* ARGS="-n 0 -m cpu $(shell grep -l 'mark\.cpu' tests/test_*.py) $(ARGS)"

# What GPU machines hold is often older than the Triton here. Its wheel has all that compiling takes, and no other needs; it lies in
# a folder of its own, for this only: .venv keeps the one that it has.
OTHER_TRITON ?= 3.6.0
OTHER := build/triton-$(OTHER_TRITON)
machine-code: $(VENV)/dev.stamp $(OTHER)/triton  ## the persistent GPU kernels as OTHER_TRITON compiles them, read by a test
	PYTHONPATH=$(OTHER) $(BIN)/python -c "import triton; assert triton.__version__ == '$(OTHER_TRITON)', triton.__file__"
	PYTHONPATH=$(OTHER) $(BIN)/pytest -n 0 tests/test_gpu_compile.py -k "keeps_the_order" $(ARGS)

$(OTHER)/triton: | $(BIN)/python
	rm -rf $(OTHER)
	$(PIP) install --no-deps --no-compile --target $(OTHER) triton==$(OTHER_TRITON)

# Of the tests, those that reach C++; more arguments for pytest in ARGS. The preloaded libstdc++ is what exceptions pass through
# (SANITIZE=thread builds, but knows nothing of OpenMP's barriers: it takes all that workers hand over for races)
SANITIZE ?= address
RUNTIME_address := asan
RUNTIME_thread := tsan
RUNTIME_undefined := ubsan
WATCHED := build/$(SANITIZE)
REACH_C := $(patsubst %,tests/test_%.py,lstm cells parity conv_lstm conv_winograd attention_lstm attend_at_once stream bf16_products float32_precision second vmap threads)
sanitize: $(VENV)/dev.stamp  ## tests of the kernels with AddressSanitizer, or by SANITIZE=undefined
	SANITIZE=$(SANITIZE) $(BIN)/python setup.py --quiet build --build-temp $(WATCHED)-objects --build-lib $(WATCHED)
	PYTHONPATH=$(WATCHED) ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 \
	    LD_PRELOAD="$(foreach lib,$(RUNTIME_$(SANITIZE)) stdc++,$(shell g++ -print-file-name=lib$(lib).so))" \
	    $(BIN)/pytest -n 0 $(REACH_C) $(ARGS)

lint: $(VENV)/dev.stamp  ## ruff (lint and format) and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# A link that leads nowhere is a warning, and ends it (with --quiet none would). Nothing in it may need a network to be read.
docs: $(VENV)/dev.stamp  ## the documentation, with a reference made from the docstrings, in build/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build
	@! grep -rlE '<(script|link|img|iframe)[^>]+(src|href)="?(https?:)?//' build/docs --include='*.html'
	@echo "build/docs/index.html; with a search: $(BIN)/python -m http.server --directory build/docs"

# PyTorch's own modules at every case; other peers, and what PyTorch lacks, at some. torch.compile of a loop takes minutes: one case
BENCH := $(BIN)/fastlstm bench --pairs 7 --json benchmarks/results
OWN := --variant peephole_lstm --variant cifg_lstm
SOME := $(patsubst %,--case %,darts deepar ppo codec translate square)
bench: $(VENV)/dev.stamp  ## measure every case for the README, which is written anew (to measure your own: fastlstm bench)
	$(BENCH) --variant lstm $(SOME) --dtype bf16 --against torch --against fp32
	$(BENCH) --resume --variant gru --case darts --case deepar --case square --dtype bf16 --against torch
	$(BENCH) --resume --variant conv_lstm --variant attention_lstm --dtype bf16
	$(BENCH) --resume --variant peephole_lstm --case ppo --case codec --dtype bf16 --against cell
	$(BENCH) --variant lstm --variant gru --case darts --case deepar --dtype fp16 --against torch
	$(BENCH) --isa avx2 --variant lstm --variant gru --variant conv_lstm
	$(BENCH) --variant lstm --variant gru
	$(BENCH) --resume --variant gru $(OWN) --variant cifg_peephole_lstm $(SOME) --against lstm
	$(BENCH) --resume --variant lstm --variant gru $(OWN) $(SOME) --against cell
	$(BENCH) --resume --variant lstm --variant gru --case ppo-resets --case control-resets --against cut
	$(BENCH) --resume --variant lstm --variant gru --case stream --case deepar --against penalty --mode train
	$(BENCH) --resume --variant lstm --variant gru --case 'T32 B16 I32 H64 fp32 train' --against ensemble
	$(BENCH) --resume --variant lstm --variant gru --case 'T32 B64 I32 H64 fp32 train' --against samples
	$(BENCH) --resume --variant lstm --variant gru --case packed --case tagger-lengths --against dense
	$(BENCH) --resume --variant lstm --variant gru $(SOME) --against high
	$(BENCH) --resume --variant lstm --variant gru $(OWN) --case darts --case ppo --case square --against onnx --mode infer
	$(BENCH) --resume --variant conv_lstm
	$(BENCH) --resume --variant conv_lstm --against channels-last --against keras
	$(BENCH) --resume --variant conv_lstm --against checkpoint --mode train
	$(BENCH) --resume --variant peephole_conv_lstm --variant cifg_conv_lstm --variant cifg_peephole_conv_lstm --case radar --case video --against lstm
	$(BENCH) --resume --variant attention_lstm
	$(BENCH) --resume --variant attention_lstm --against joeynmt --against sdpa --against lstm
	$(BENCH) --resume --variant conv_lstm --case video --against compile --mode train
	$(BENCH) --resume --variant attention_lstm --case pronounce --against compile --mode train
	$(BENCH) --resume $(OWN) --case darts --against compile --against compile-ours --mode train
	$(BIN)/fastlstm bench --readme "$$(ls -t benchmarks/results/*.json | head -n 1)"

# Both torches are downloaded for each Python: from PyPI, GPU builds of some GB on Linux; set PIP_EXTRA_INDEX_URL to PyTorch's CPU builds
wheels: $(VENV)/run.stamp  ## a wheel for each Python here, in dist/: built, audited, and used beside TORCHES
	PYTHONS="$(PYTHONS)" TORCHES="$(TORCHES)" .ci/wheels

# setuptools of before 77 doesn't know pyproject.toml's license
GPU_LACKS := import importlib.util as u, importlib.metadata as m; need = 'numpy pybind11 rich safetensors triton typer'.split(); \
    lacks = [n for n in need if not u.find_spec(n)]; old = not u.find_spec('setuptools') or int(m.version('setuptools').split('.')[0]) < 77; \
    print(*lacks, *['setuptools>=77'] * old)
# Uses PYTHON as it is, installs nothing and needs no network: the package is built beside the checkout's sources
gpu-check:  ## parity and speed on a GPU, with the torch that PYTHON already has
	@if ! $(PYTHON) -c "import torch" 2>/dev/null; then \
	    echo "gpu-check: no torch in '$(PYTHON)': name one that has it, make gpu-check PYTHON=..."; exit 1; \
	elif ! $(PYTHON) -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then \
	    echo "gpu-check: no GPU here (torch.cuda.is_available() is False in '$(PYTHON)'), so nothing was run."; \
	elif lacks=$$($(PYTHON) -c "$(GPU_LACKS)"); [ -n "$$lacks" ]; then \
	    echo "gpu-check: '$(PYTHON)' lacks what it takes to build and run this: $$lacks"; exit 1; \
	else \
	    $(MAKE) --no-print-directory on-gpu; \
	fi

clean:  ## remove .venv and everything that was built
	rm -rf $(VENV) build dist fastlstm.egg-info fastlstm/*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# What gpu-check runs. Each part is tried, whatever failed before it (-k): those that are not timed side by side, then those that
# are. No part takes longer than 3 minutes, and all of them end before END.
GPU_LIB := build/gpu
END := 9999999999
ON_GPU = left=$$(($(END) - $$(date +%s))); [ $$left -gt 15 ] || { echo "$@: no time is left for it"; exit 1; }; \
    PYTHONPATH=$(GPU_LIB) timeout -k 5 $$((left < 180 ? left : 180)) $(PYTHON)
GPU_BENCH = $(ON_GPU) -P -m fastlstm bench --device cuda --pairs 5 --json $(OUT) $(ARGS)
BF16 = $(GPU_BENCH) --dtype bf16 --resume --variant lstm --variant gru
GPU_PARITY := $(patsubst %,on-gpu-parity-%,fp32 bf16 fp16)
GPU_SPEED := $(patsubst %,on-gpu-%,train infer cell lstm dense cut rollouts fp16 floor attention conv compile)
.PHONY: on-gpu on-gpu-info on-gpu-checks $(GPU_PARITY) $(GPU_SPEED)
on-gpu: END := $(shell expr $$(date +%s) + 465)
on-gpu:
	rm -rf $(GPU_LIB)
	$(PYTHON) setup.py --quiet build --build-lib $(GPU_LIB)
	mkdir -p $(OUT)
	@code=0; $(MAKE) END=$(END) -k -j5 -O on-gpu-info on-gpu-checks $(GPU_PARITY) || code=1; $(MAKE) END=$(END) -k $(GPU_SPEED) || code=1; exit $$code

on-gpu-info:
	$(ON_GPU) -P -m fastlstm info
on-gpu-checks:  # a script's own folder is its path: -P would take it away, and the checkout's fastlstm isn't there
	$(ON_GPU) tests/on_gpu.py --json $(OUT)/checks.json
$(GPU_PARITY): on-gpu-parity-%:  # thousands of lines: those that miss or fail, and the sum
	$(ON_GPU) -P -m fastlstm parity --device cuda --backend triton --dtype $* --json $(OUT)/parity-$*.json > $(GPU_LIB)/$*.txt; \
	    code=$$?; grep -E 'MISS|FAILED|compared' $(GPU_LIB)/$*.txt; \
	    [ $$code -lt 124 ] || echo "parity in $*: ended before its end; what it knew by then is in its file"; exit $$code

on-gpu-train:  # the first writes its file anew
	$(GPU_BENCH) --dtype bf16 --variant lstm --variant gru --mode train
on-gpu-infer:
	$(BF16) --mode infer $(patsubst %,--case %,b16-h256 b16-h1024 b64-h512 b128-h1024 b1-h128-t1)
on-gpu-cell:
	$(BF16) $(OWN) --mode train --case b16-h512 --against cell
on-gpu-lstm:
	$(GPU_BENCH) --dtype bf16 --resume $(OWN) --mode train --case b16-h256 --case b16-h768 --case b64-h512 --against lstm
on-gpu-dense:
	$(BF16) --case b64-h512-packed --against dense
on-gpu-cut:
	$(BF16) --mode train --case b64-h512-resets --against cut
on-gpu-rollouts:  # by TorchRL where PYTHON has it: its kernels are Triton, too
	$(GPU_BENCH) --dtype fp32 --variant lstm --variant gru --case rollouts --against torchrl --against cut
on-gpu-fp16:
	$(GPU_BENCH) --dtype fp16 --variant lstm --variant gru --case published
on-gpu-floor:
	$(ON_GPU) -P -m fastlstm.benchmarks.floor $(OUT)/floor.json
on-gpu-attention:
	$(GPU_BENCH) --dtype bf16 --resume --variant attention_lstm --mode train --case pronounce
on-gpu-conv:
	$(GPU_BENCH) --dtype bf16 --resume --variant conv_lstm --mode train --case video --against cell
on-gpu-compile:  # the last: it is slow, and the least of them
	$(GPU_BENCH) --dtype bf16 --resume --variant lstm --mode train --case darts --against compile

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
	$(call set-up,plot test lint docs)
	@touch $@ $(VENV)/run.stamp

# progress is shown, warnings only where it failed; the extension is compiled while the packages that it doesn't need are installed;
# Python compiles what it imports at the first import: pip would compile thousands of files that nobody does
install = $(PIP) install --no-compile '$(TORCH)' $(1) 2> $(VENV)/$(or $(2),pip).err || { cat $(VENV)/$(or $(2),pip).err; exit 1; }
define set-up
@echo "Setting up $(VENV) with $(TORCH); the first time this takes minutes. Log: $(VENV)/pip.log"
@$(call install,$(BUILD_NEEDS))
@($(call install,--no-build-isolation --no-deps --editable .,build)) & built=$$!; ($(call install,$(NEEDS))); code=$$?; wait $$built && exit $$code
@$(BIN)/python -c "from fastlstm.backends import extension_status as s; s() == 'built' or print(f'fastlstm: the C++ extension is {s()}. It runs without, slower; to mend it: install g++ >= 11, touch setup.py, make again.')"
endef
