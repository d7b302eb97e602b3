"""Replaces mmcv's compiled extension, ``mmcv._ext``, where mmcv was installed without one.

The functions have the names and arguments of the compiled ones, and write their results to the same arguments. They
use torchvision's operators where these compute the same, and otherwise only PyTorch.

This folder must not import the rest of sa_mmdet: mmcv loads it before MMDetection can be imported.
"""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

try:
    import torchvision.ops
except Exception as error:  # built for another PyTorch it raises RuntimeError
    raise ModuleNotFoundError(
        "mmcv has no compiled operators, and torchvision, whose operators could stand in for them, does not import: "
        f"{error}. Install the torchvision that belongs to this PyTorch, or mmcv with its operators",
        name=__name__,
    ) from error

from .deformable import (
    deform_conv_backward_input,
    deform_conv_backward_parameters,
    deform_conv_forward,
    modulated_deform_conv_backward,
    modulated_deform_conv_forward,
)
from .focal_loss import sigmoid_focal_loss_backward, sigmoid_focal_loss_forward
from .refusal import refuse
from .region_align import roi_align_backward, roi_align_forward
from .suppression import nms, nms_match, softnms

__all__ = [
    "deform_conv_backward_input",
    "deform_conv_backward_parameters",
    "deform_conv_forward",
    "get_compiler_version",
    "get_compiling_cuda_version",
    "modulated_deform_conv_backward",
    "modulated_deform_conv_forward",
    "nms",
    "nms_match",
    "roi_align_backward",
    "roi_align_forward",
    "sigmoid_focal_loss_backward",
    "sigmoid_focal_loss_forward",
    "softnms",
]


def get_compiler_version() -> str:
    """What mmcv's collect_env prints as "MMCV Compiler", so that bug reports mention the stand-ins."""
    return f"none, torchvision {torchvision.__version__} stands in for the compiled operators"


def get_compiling_cuda_version() -> str:
    """What mmcv's collect_env prints as "MMCV CUDA Compiler"."""
    return "not available"


def __getattr__(name: str) -> Callable[..., Any]:
    """Give a function that raises an error when it is called: on import mmcv only looks up all of its operators."""
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return partial(refuse, f"its operator {name}")


warnings.warn(
    f"mmcv has no compiled operators. torchvision {torchvision.__version__} stands in for nms, soft_nms, nms_match, "
    "roi_align, sigmoid_focal_loss and deformable convolution; a call of any other operator is refused.",
    stacklevel=1,
)
