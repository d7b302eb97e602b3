"""Evaluation of many runs: training and testing them, comparing their metrics, significance, and a report."""

from .average_precision import METRICS, TASKS, Evaluation, evaluate
from .comparison import Comparison, compare, without_nan
from .files import evaluate_common
from .runs import Run, read_run

__all__ = [
    "METRICS",
    "TASKS",
    "Comparison",
    "Evaluation",
    "Run",
    "compare",
    "evaluate",
    "evaluate_common",
    "read_run",
    "without_nan",
]
