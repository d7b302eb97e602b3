"""The configs of detectors and classifiers, and the tool that writes the tables of their results, as a module."""

import importlib.util

from places import CONFIGS, REPOSITORY

RUNNABLE = sorted(path for path in CONFIGS.glob("*/*.py") if not path.parent.name.startswith("_"))
CLASSIFIERS = [path for path in RUNNABLE if path.parent.name in ("cifar", "imagenet", "places365", "senet")]
DETECTORS = [path for path in RUNNABLE if path not in CLASSIFIERS]
COCO = [path for path in DETECTORS if path.parent.name not in ("demo", "sa_walk")]

spec = importlib.util.spec_from_file_location("make_tables", REPOSITORY / "tools" / "misc" / "make_tables.py")
assert spec is not None
assert spec.loader is not None
make_tables = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make_tables)


def stem(detector: str) -> str:
    """A detector's name in config names, from the paper's name."""
    return detector.lower().replace(" r-cnn", "-rcnn")
