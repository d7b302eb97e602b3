"""Paths in the repository, and types of fixtures."""

import importlib.metadata
from collections.abc import Callable
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIGS = REPOSITORY / "configs"
DEMO = CONFIGS / "demo" / "mask-rcnn_sa-r18_fpn_shapes.py"
# MMDetection's name for pip and mim; the maintained fork has another one.
MMDETECTION = importlib.metadata.packages_distributions()["mmdet"][0]
Tool = Callable[..., tuple[int, str, str]]  # the fixture "tool"
