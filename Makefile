# The environment: a virtual environment of our own, or an existing one (make test VENV=$CONDA_PREFIX).
VENV ?= .venv
# The interpreter that .venv is made with, 3.10 to 3.12.
PYTHON ?= python3
# Which PyTorch, and further arguments for pip when it installs it, such as --index-url for another CUDA.
TORCH ?=
TORCH_ARGS ?=
DEMO_DIR ?= work_dirs/demo

export VENV TORCH TORCH_ARGS
BIN = $(VENV)/bin

.PHONY: install test demo clean

install:
	@$(PYTHON) .ci/install.py

test: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

demo: install
	$(BIN)/python tools/demo.py $(DEMO_DIR)

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache work_dirs
