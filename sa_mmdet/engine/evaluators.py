"""The single evaluators in a config."""

from collections.abc import Iterator, Mapping
from typing import Any


def evaluators(config: Any, key: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """All single evaluators, each with its key in the config, such as 'test_evaluator.metrics.0'.

    Args:
        config: One evaluator, a list of them, or an ``Evaluator`` with metrics; anything else has none.
        key: Its key.
    """
    if isinstance(config, list | tuple):
        for number, one in enumerate(config):
            yield from evaluators(one, f"{key}.{number}")
    elif isinstance(config, Mapping):
        if "metrics" in config:  # of MMEngine's class Evaluator
            yield from evaluators(config["metrics"], f"{key}.metrics")
        else:
            yield key, config


def is_coco_metric(evaluator: Mapping[str, Any]) -> bool:
    """Whether an evaluator is MMDetection's CocoMetric, given by its name or its class."""
    kind = evaluator.get("type")
    return str(getattr(kind, "__name__", kind)).rpartition(".")[2] == "CocoMetric"
