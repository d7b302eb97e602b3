"""A repair of how MMEngine finds torchvision's weights."""

import importlib.util
from pathlib import Path
from typing import Any

import mmengine
from mmengine.fileio import load
from mmengine.runner.checkpoint import CheckpointLoader, load_from_http


def load_from_torchvision(filename: str, map_location: Any = None) -> Any:
    """Load torchvision's weights by their name, from MMEngine's own list of addresses.

    Args:
        filename: Such as 'torchvision://resnet50'.
        map_location: The devices to load to.

    Raises:
        ValueError: The list does not have this name.
    """
    name = filename.partition("://")[2]
    urls = load(Path(mmengine.__file__).parent / "hub" / "torchvision_0.12.json")
    if name not in urls:
        raise ValueError(f"{filename}: MMEngine's list of torchvision's weights does not have {name!r}")
    return load_from_http(urls[name], map_location=map_location)


def torchvision_is_missing() -> bool:
    """Whether MMEngine cannot ask torchvision for the addresses of its weights."""
    return importlib.util.find_spec("torchvision") is None


def resolve_torchvision_names() -> None:
    """Let 'torchvision://resnet50' name weights where torchvision is not installed.

    MMEngine (all versions so far) imports torchvision to look the address up, although it ships a list of its own.
    """
    prefixes = ("modelzoo://", "torchvision://")
    CheckpointLoader.register_scheme(prefixes=prefixes, loader=load_from_torchvision, force=True)
