"""Which of a config's evaluators writes detections in COCO's format, and on which annotations it tests."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config, DictAction

from sa_mmdet.engine.evaluators import evaluators, is_coco_metric
from sa_mmdet.messages import listed, one_line

Found = tuple[str, Mapping[str, Any]]  # where an evaluator is, such as 'test_evaluator.metrics.0', and its config


def effective_config(path: str | Path, options: Sequence[str]) -> Config:
    """Read a config as train.py and test.py do.

    Args:
        path: The config's path.
        options: ``KEY=VALUE`` pairs, as --cfg-options takes them.

    Raises:
        ValueError: The options do not fit the config.
    """
    cfg = Config.fromfile(path)
    parser = argparse.ArgumentParser()
    parser.add_argument("--cfg-options", nargs="*", action=DictAction, default={})
    wrong = [option for option in options if "=" not in option]
    if wrong:
        raise ValueError(f"--cfg-options {listed(wrong)}: give pairs KEY=VALUE")
    try:
        cfg.merge_from_dict(parser.parse_args(["--cfg-options", *options]).cfg_options)
    except (KeyError, TypeError, AssertionError, ValueError) as error:
        raise ValueError(f"{path}: --cfg-options do not fit it: {one_line(error, 200)}") from error
    return cfg


def coco_evaluator(cfg: Config) -> Found | None:
    """The first of the test's evaluators that is a CocoMetric, or else the first that has annotations.

    Args:
        cfg: A config, whose ``test_evaluator`` may be one evaluator, a list, or an ``Evaluator`` with metrics.

    Returns:
        Its key in the config and its config; None if no evaluator names a file of annotations.
    """
    found = [
        (key, evaluator)
        for key, evaluator in evaluators(cfg.get("test_evaluator"), "test_evaluator")
        if isinstance(evaluator.get("ann_file"), str)
    ]
    return next((one for one in found if is_coco_metric(one[1])), found[0] if found else None)


def annotations_of(path: str | Path, cfg: Config) -> tuple[str, str]:
    """The annotations that a config tests on.

    Args:
        path: The config's path, which errors name.
        cfg: The config.

    Returns:
        The key of the evaluator that writes the detections, and its file of annotations.

    Raises:
        ValueError: No evaluator of the test has annotations, or several of COCO's have different ones.
    """
    found = coco_evaluator(cfg)
    if found is None:
        raise ValueError(
            f"{path}: no evaluator in test_evaluator names annotations: give a CocoMetric with ann_file=FILE"
        )
    others = evaluators(cfg.get("test_evaluator"), "test_evaluator")
    files = {str(other.get("ann_file")) for _, other in others if is_coco_metric(other)} or {found[1]["ann_file"]}
    if len(files) > 1:
        raise ValueError(f"{path}: tests on several files of annotations ({listed(sorted(files))}): use one")
    return found[0], files.pop()
