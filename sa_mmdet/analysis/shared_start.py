"""Running the layers before some layer once, while what comes after them runs several times."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mmdet.models import ResNet
from torch import nn


@contextmanager
def shared_start(model: Any, layer: str) -> Iterator[None]:
    """A context for several forwards on one input: what runs before a layer runs in the first of them.

    That are, for a layer in a ResNet, the stages and blocks before its own, and for one behind the backbone or the neck
    these. In other networks all layers run each time.

    Args:
        model: A detector or classifier with a backbone.
        layer: The dotted name of the layer that is changed between the forwards.
    """
    modules = _before(model, layer)
    for module in modules:
        _keep_first(module)
    try:
        yield
    finally:
        for module in modules:
            vars(module).pop("forward", None)


def _before(model: Any, layer: str) -> list[nn.Module]:
    part, *path = layer.split(".")
    if part != "backbone":
        done = ["backbone"] if part == "neck" else ["backbone", "neck"]
        return [getattr(model, name) for name in done if isinstance(getattr(model, name, None), nn.Module)]
    backbone = model.backbone
    if not isinstance(backbone, ResNet) or path[0] not in backbone.res_layers:
        return []
    modules = [getattr(backbone, name) for name in backbone.res_layers[: backbone.res_layers.index(path[0])]]
    stage = getattr(backbone, path[0])
    for name, block in stage.named_children():
        if name == path[1]:
            break
        modules.append(block)
    return [module for module in modules if "forward" not in vars(module)]


def _keep_first(module: nn.Module) -> None:
    """Let a module return what it returns first."""
    forward = module.forward
    kept: list[Any] = []

    def first(*arguments: Any, **options: Any) -> Any:
        if not kept:
            kept.append(forward(*arguments, **options))
        return kept[0]

    vars(module)["forward"] = first
