"""Where in a residual block its attention is: the placements that the SE paper compares.

Source: Squeeze-and-Excitation Networks (arXiv 1709.01507), section 6.5, Figure 7 and Table 14.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn

from sa_mmdet.insertion import attach
from sa_mmdet.insertion.layers import build


def _before_the_block(block: Any) -> tuple[nn.Module, int, bool]:
    return block.conv1, block.conv1.in_channels, True


def _after_the_block(block: Any) -> tuple[nn.Module, int, bool]:
    return block, _width(block), False


def _on_the_identity(block: Any) -> tuple[nn.Module, int, bool]:
    if block.downsample is None:
        block.downsample = nn.Identity()  # which blocks add to their output, as they add a convolution's
    whole = block.downsample
    return whole[-1] if isinstance(whole, nn.Sequential) else whole, _width(block), False


def _width(block: Any) -> int:
    return getattr(block, "conv3", block.conv2).out_channels


# For each placement the module of a block behind which attention is, or in front of which, and its channels; None for
# those that MMDetection's plugins have.
PLACEMENTS: Mapping[str, Callable[[Any], tuple[nn.Module, int, bool]] | None] = {
    "standard": None,
    "pre": _before_the_block,
    "post": _after_the_block,
    "identity": _on_the_identity,
    "conv2": None,
}


def plugin_position(placement: str, basic: bool = False) -> str | None:
    """The name that a placement has as a position of plugins, or None if it has none.

    Args:
        placement: One of :data:`PLACEMENTS`.
        basic: Whether the blocks are those of ResNet-18 and -34.

    Raises:
        ValueError: The blocks have no such place.
    """
    if basic and placement == "conv2":
        raise ValueError(
            "placement='conv2' is after the one 3 x 3 convolution of a bottleneck, and the blocks of ResNet-18 and -34 "
            "have two: use 'standard', which is after the second"
        )
    if PLACEMENTS[placement] is not None:
        return None
    return "after_conv2" if basic or placement == "conv2" else "after_conv3"


def place(blocks: Iterable[nn.Module], attention: Mapping[str, Any] | None, placement: str) -> None:
    """Put attention into the blocks of a stage, where MMDetection's plugins have no position.

    Args:
        blocks: The blocks.
        attention: The config of the layer; nothing is done if None.
        placement: One of :data:`PLACEMENTS` without a position of plugins.
    """
    find = PLACEMENTS[placement]
    for block in blocks if attention is not None and find is not None else ():
        assert find is not None
        assert attention is not None
        module, channels, front = find(block)
        attach(module, build(attention, channels, exact=True), exact=True, front=front)
