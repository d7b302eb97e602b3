"""What a report says about a task: the variants' metrics, what they cost, and how they compare."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sa_mmdet.messages import one_line

from .average_precision import TASKS
from .comparison import Comparison
from .cost_charts import cost_charts, points_of
from .costs import Cost, Time
from .error_types_comparison import compare_errors
from .error_types_tables import error_tables, told_apart
from .forest import forest
from .gallery import gallery
from .plots import precision_by_recall
from .runs import Run
from .tables import class_tables, logged, result_table
from .test_sets import judged_together
from .variants import by_variant

Comparing = Callable[[Path, Sequence[tuple[str, Sequence[str]]], str, int], Comparison]


@dataclass(frozen=True)
class Study:
    """Runs that count, of the same test set."""

    runs: Sequence[Run]  # the baseline's first
    names: Mapping[str, str]  # the variants' short names
    costs: Mapping[str, Cost]  # by variant
    times: Mapping[str, Time]  # by variant, where they were measured
    measured: str  # what the times are of
    paper: Path  # the folder with the paper's tables
    comparing: Comparing  # compares results, with the arguments of compare


def part_of(study: Study, task: str, resamples: int, images: int) -> tuple[dict[str, Any] | None, list[str]]:
    """Compute what the page shows of a task.

    Args:
        study: The runs and what they cost.
        task: 'bbox' or 'segm'.
        resamples: The number of the bootstrap's resamples.
        images: The number of images in the gallery.

    Returns:
        The values for the template, or None if no run has metrics of the task; and notes about what is missing.
    """
    shown: dict[str, Any] = dict(
        task=TASKS[task], sentences=[], forest=None, precision=None, classes=[], gallery=[], judged=False
    )
    notes: list[str] = []
    found = None
    try:
        found = _compared(study, task, resamples, images, shown, notes)
    except ValueError as error:
        notes.append(one_line(error))
    accuracies = logged(study.runs, task)
    if found is not None:
        accuracies = {
            variant: [run.points["AP"] for run in found.runs[found.variants.index(name)]]
            for variant, name in study.names.items()
            if name in found.variants
        }
    if not any(accuracies.values()):
        return None, notes
    points = points_of(study.runs, accuracies, study.names, study.costs, study.times)
    shown["results"] = result_table(study.runs, study.names, study.costs, task, found)
    shown["charts"] = cost_charts(study.runs, points, study.measured, task, study.paper)
    return shown, notes


def _compared(
    study: Study, task: str, resamples: int, images: int, shown: dict[str, Any], notes: list[str]
) -> Comparison | None:
    """Compare what can be judged; add to the notes, and to what the page shows."""
    annotations, judged, said = judged_together(study.runs, task)
    notes += said
    variants = by_variant(judged)
    if annotations is None or not variants:
        return None
    baseline = study.runs[0].variant
    if baseline not in variants:
        notes.append(
            f"{study.names[baseline]}, with which the others are compared, has no {TASKS[task]} results that can be "
            "judged: nothing is judged; name another --baseline"
        )
        return None
    files = [(study.names[name], [str(run.results(task)) for run in own]) for name, own in variants.items()]
    found = study.comparing(annotations, files, task, resamples)
    errors = compare_errors(annotations, files, task, resamples)
    if not found.differences:
        notes.append(f"{found.variants[0]} is the only variant with {TASKS[task]} results: nothing is compared")
    shown.update(
        sentences=found.sentences(),
        forest=forest(found) if found.differences else None,
        precision=precision_by_recall(found),
        classes=class_tables(found),
        errors=error_tables(errors, classes=None),
        told_apart=told_apart(errors),
        judged=True,
    )
    if images:
        firsts = [own[0] for own in variants.values()]
        names = [study.names[name] for name in variants]
        shown["gallery"], said = gallery(annotations, firsts, names, task, images)
        shown["captions"] = [f"{name} is {run.name}" for name, run in zip(names, firsts, strict=True)]
        notes += said
    return found
