# One virtual environment for everything; each target sets up what it needs, quietly.
PYTHON ?= python3
TORCH ?= torch==2.13.0
CUDA_TORCH ?= torch==2.11.0
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
OPS ?= gaussian_mi training_step smiles one_hot one_hot_conv1d token_cache knn_mi estimators
BUILD_INPUTS := setup.py pyproject.toml $(shell find csrc -type f)

.PHONY: help demo test lint bench sanitize aot cuda-build gpu-check wheel clean

help:
	@echo "make demo      train STIB on the artificial data; the paper's table beside ours"
	@echo "make test      run every test"
	@echo "make lint      formatting, style and types"
	@echo "make bench     run the benchmarks (OPS=gaussian_mi: one of them) and keep their results"
	@echo "make sanitize  run the C++ under the address and undefined-behaviour sanitizers"
	@echo "make wheel     build the wheel from the sdist and import it in a clean environment"
	@echo "make aot       compile every Triton kernel for GPUs that need not be there"
	@echo "make cuda-build  build the GPU library, and load both in the CUDA build of torch"
	@echo "make gpu-check  on a machine with a GPU: build, run every GPU test, sanitizer and benchmark"

$(READY): $(BUILD_INPUTS)
	@echo "Setting up $(VENV) (a few minutes the first time) …"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install $(TORCH) "setuptools>=77" wheel ninja pybind11 numpy 2> $(VENV)/pip.log || (cat $(VENV)/pip.log; exit 1)
	@STIB_FAST_REQUIRE_EXT=1 $(PIP) install --no-build-isolation -e ".[dev]" \
	  > $(VENV)/build.log 2>&1 || (cat $(VENV)/build.log; exit 1)
	@touch $@

demo: $(READY)
	@if [ -d runs/demo ]; then $(BIN)/stib resume runs/demo; \
	 else $(BIN)/stib train artificial --run runs/demo; fi

test: $(READY)
	@$(BIN)/python -m pytest -q --cov --cov-report=term:skip-covered $(ARGS)

lint: $(READY)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/clang-format --dry-run -Werror $(shell find csrc -type f)
	@$(BIN)/mypy

bench: $(READY)
	@for op in $(OPS); do $(BIN)/python -m benchmarks $$op $(ARGS) || exit; done

sanitize: $(READY)
	@PYTHON="$(CURDIR)/$(BIN)/python" tools/sanitize.sh

wheel: $(READY)
	@PYTHON="$(CURDIR)/$(BIN)/python" TORCH="$(TORCH)" tools/check_wheel.sh

aot: $(READY)
	@$(BIN)/python -m tools.aot $(ARGS)

cuda-build: $(READY)
	@PYTHON="$(PYTHON)" CUDA_TORCH="$(CUDA_TORCH)" tools/cuda_build.sh

# With the machine's own Python: it has the torch that fits its GPU.
gpu-check:
	@PYTHON="$(PYTHON)" tools/gpu_check.sh $(ARGS)

clean:
	rm -rf build dist *.egg-info $(VENV)
