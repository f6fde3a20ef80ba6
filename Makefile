# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
# Tested version. Where there is no GPU a CPU build of this version is enough; point pip at one to save a large download.
TORCH ?= torch==2.13.0
# ONNX Runtime for CPU and for GPU exclude each other, so a machine has one of these extras.
BACKENDS := $(if $(shell command -v nvidia-smi 2>/dev/null),gpu,cpu)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-full test-gpu lint install clean

demo: $(STAMP)
	$(BIN)/vitdeploy demo --output demo --overwrite

test: $(STAMP)
	$(BIN)/python -m pytest -m "not full"

test-full: $(STAMP)
	$(BIN)/python -m pytest

test-gpu: $(STAMP)
	@echo "Needs an NVIDIA GPU with its driver, and: pip install '.[gpu]' (see docs/gpu.md)"
	$(BIN)/python -m pytest -m gpu tests/gpu

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install: $(STAMP)

$(STAMP): pyproject.toml setup.py vitdeploy/runtime/kernels.cpp vitdeploy/runtime/steps.h
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[build,$(BACKENDS),dev]"
	@# tensorrt-rtx builds engines without a GPU, on x86 only; without it the demo says so and goes on.
	$(BIN)/python -m pip install --quiet --editable ".[rtx]" || echo "tensorrt-rtx is not to be had here: no RTX engines"
	touch $@

clean:
	rm -rf $(VENV) demo build dist *.egg-info
