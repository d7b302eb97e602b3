"""Evaluation of many runs: training and testing them, comparing their metrics, significance, and a report."""

from .average_precision import METRICS, TASKS, Evaluation, evaluate
from .comparison import Comparison, common_tasks, compare, without_nan
from .runs import Run, read_run

__all__ = [
    "METRICS",
    "TASKS",
    "Comparison",
    "Evaluation",
    "Run",
    "common_tasks",
    "compare",
    "evaluate",
    "read_run",
    "without_nan",
]
