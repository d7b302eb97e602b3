"""Skipping tests where PyTorch is too old for them."""

import importlib.metadata
import importlib.util
from typing import Any

import pytest
import torch
from mmengine.utils import digit_version

from sa_mmdet.ops.backends import AVAILABLE

OLD = digit_version(torch.__version__) < digit_version("2.6.0")  # torch.load runs code, another ONNX exporter
export = pytest.mark.skipif(not hasattr(torch, "export"), reason="torch.export came with PyTorch 2.1")
_float16 = pytest.mark.skipif(not AVAILABLE, reason="float16 on CPUs came with PyTorch 2.4")
HALF: list[Any] = [pytest.param(torch.float16, marks=_float16), torch.bfloat16]

onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")) or OLD,
    reason="ONNX, its exporter or its runtime is not installed, or PyTorch is older than 2.6",
)
triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or not AVAILABLE, reason="Triton is not installed, or not used"
)


def triton_interpreter() -> Any:
    """A mark for tests in Triton's interpreter: that of 3.0 fails with numpy 2, and has one wrong sum with numpy 1."""
    old = importlib.util.find_spec("triton") is not None and digit_version(
        importlib.metadata.version("triton")
    ) < digit_version("3.1.0")
    return pytest.mark.skipif(old, reason="the interpreter of this Triton computes wrong results")


def mixed_group_norm() -> None:
    if not hasattr(torch, "compile"):
        pytest.skip("group norm of half precision with weights of float32 came with PyTorch 2")


def operator() -> None:
    if not AVAILABLE:
        pytest.skip("custom operators came with PyTorch 2.4")
