# `make run` and `make test` set everything up on a fresh machine. PYTHON=/path/to/python overrides the interpreter that is found.
PYTHON ?= $(shell for p in python3.12 python3.13 python3.14 python3; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
AOT := .aot
AOT_READY := $(AOT)/.ready
# The assembler that ends a compilation for a GPU: that of an installed CUDA, or else of packages.
AOT_EXTRAS := aot $(if $(and $(wildcard /usr/local/cuda/bin/ptxas),$(wildcard /usr/local/cuda/nvvm/libdevice/*.bc)),,aot-cuda)
WORKERS ?= 2
# Most of the time of small tests is LLVM's, which optimises programs that run for milliseconds.
QUICK := --xla_backend_optimization_level=0
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/jax

.PHONY: help setup run test test-slow aot oracle lint format clean

help:  ## what there is to do
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

setup: $(READY)  ## the virtual environment, pinned by constraints.txt

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "mmjax needs Python 3.12 or newer; none was found (set PYTHON=/path/to/python3.12)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo,dev]'
	@touch $@

run: setup  ## train, score and report the default recipe (about five minutes on two CPU cores)
	$(BIN)/python -m mmjax.main --config=configs/cos.py

test: setup  ## the tests
	XLA_FLAGS="$(QUICK) $$XLA_FLAGS" $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not slow"

test-slow: setup  ## what takes longer: kills, signals, whole jobs
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m slow

aot: $(AOT_READY)  ## compilers for GPUs and TPUs, for the tests that compile for them (350 MB, 1.1 GB unpacked)

# In a folder of its own (see the extra of that name), which pip does not update: it is made anew.
$(AOT_READY): $(READY)
	rm -rf $(AOT)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: --target $(AOT) -c constraints.txt \
		$$($(BIN)/python -c 'import sys, tomllib; extras = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]; \
			print(*[package for name in sys.argv[1:] for package in extras[name]])' $(AOT_EXTRAS)) \
		|| { rm -rf $(AOT); echo "make aot: pip could not bring the compilers (extras $(AOT_EXTRAS) of pyproject.toml)"; exit 1; }
	@touch $@

oracle:  ## a second environment with PyTorch and transformers, for live parity and the step-time benchmark
	bash tests/parity/make_oracle.sh

lint: setup  ## style and types
	$(BIN)/python -m ruff check . && $(BIN)/python -m ruff format --check . && $(BIN)/python -m mypy

format: setup  ## let ruff rewrite what it can
	$(BIN)/python -m ruff check --fix . ; $(BIN)/python -m ruff format .

clean:  ## the environments and caches (runs/ stays)
	rm -rf $(VENV) $(AOT) .oracle .cache build dist *.egg-info
