"""Skipping tests where PyTorch is too old for them."""

from typing import Any

import pytest
import torch
from mmengine.utils import digit_version

from sa_mmdet.ops.backends import AVAILABLE

OLD = digit_version(torch.__version__) < digit_version("2.6.0")  # torch.load runs code, another ONNX exporter
export = pytest.mark.skipif(not hasattr(torch, "export"), reason="torch.export came with PyTorch 2.1")
_float16 = pytest.mark.skipif(not AVAILABLE, reason="float16 on CPUs came with PyTorch 2.4")
HALF: list[Any] = [pytest.param(torch.float16, marks=_float16), torch.bfloat16]


def mixed_group_norm() -> None:
    if not hasattr(torch, "compile"):
        pytest.skip("group norm of half precision with weights of float32 came with PyTorch 2")


def operator() -> None:
    if not AVAILABLE:
        pytest.skip("custom operators came with PyTorch 2.4")
