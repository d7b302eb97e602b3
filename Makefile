# Whose OpenMMLab packages: upstream, or those of the maintained fork, onedl.
STACK ?= upstream
# The environment: a virtual environment of our own, or an existing one (make test VENV=$CONDA_PREFIX).
VENV ?= .venv$(patsubst %,-%,$(filter-out upstream,$(STACK)))
# The interpreter that .venv is made with, 3.10 or newer.
PYTHON ?= python3
# Which PyTorch, and further arguments for pip when it installs it, such as --index-url for another CUDA.
TORCH ?=
TORCH_ARGS ?=
# mmcv's operators: compiled in few units (the default), compiled file by file (plain), or replaced by torchvision's
# (torchvision).
OPERATORS ?=
DEMO_DIR ?= work_dirs/demo
DEMO_CONFIG = configs/demo/mask-rcnn_sa-r18_fpn_shapes.py

export VENV STACK TORCH TORCH_ARGS OPERATORS
# Without bytecode every process would compile all packages again, which takes longer than most tests.
unexport PYTHONDONTWRITEBYTECODE
BIN = "$(VENV)"/bin

.PHONY: install lint test test-long demo check-gpu clean

install:
	@exec "$(PYTHON)" .ci/install.py

# Types are checked against the default PyTorch alone: its annotations change from version to version.
lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(if $(TORCH),,$(BIN)/mypy)

# One process per processor, up to four: each takes up to 2 GB.
test: lint
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

# The tests that take too long for every change.
test-long: install
	$(BIN)/python -m pytest -m long

# Makes a small data set, trains on it from scratch, evaluates boxes and masks, draws ground truth beside detections.
demo: export SHAPES_ROOT = $(DEMO_DIR)/shapes
demo: install
	$(BIN)/python tools/dataset_converters/make_shapes.py $(SHAPES_ROOT)
	$(BIN)/python tools/train.py $(DEMO_CONFIG) --work-dir $(DEMO_DIR)/run
	$(BIN)/python tools/test.py $(DEMO_CONFIG) $$(cat $(DEMO_DIR)/run/last_checkpoint) --work-dir $(DEMO_DIR)/test --show-dir images
	@echo "Images, ground truth beside detections: $(DEMO_DIR)/test/*/images"

# For a machine with a GPU: the kernels' results, and their time and memory against the project's targets.
check-gpu: install
	$(BIN)/python -m pytest tests/ops/test_triton.py tests/ops/test_fused.py tests/training/test_endurance.py
	$(BIN)/python tools/misc/check_targets.py --device cuda

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache work_dirs
