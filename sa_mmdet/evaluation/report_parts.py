"""What a report says about a task: the variants' metrics, what they cost, and how they compare."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sa_mmdet.messages import one_line

from .classification import OtherImagesError, compare_classifiers
from .classification_classes import class_names, class_table, classes_told_apart, compare_classes
from .classification_files import read_predictions
from .comparison import Comparison
from .confusion import confusion, matrices, most_confused
from .cost_charts import cost_charts, points_of
from .costs import Cost, Time
from .error_types_comparison import compare_errors
from .error_types_tables import error_tables, told_apart
from .forest import forest
from .gallery import gallery
from .paper import measured_there
from .plots import precision_by_recall
from .runs import Run
from .tables import class_tables, logged, paper_tables, result_table
from .tasks import DETECTOR, Task
from .test_sets import judged_together, without_results
from .variants import by_variant

Files = list[tuple[str, list[str]]]  # for each variant its short name and the files of its runs
Comparing = Callable[[Path, Files, str, int], Comparison]
# Resamples for the types of errors, which take as long as all metrics. The deviation over images is then right to 5 %,
# where that of three seeds is right to a third.
_OF_ERRORS = 250


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


def part_of(study: Study, task: Task, resamples: int, images: int) -> tuple[dict[str, Any] | None, list[str]]:
    """Compute what the page shows of a task.

    Args:
        study: The runs and what they cost.
        task: What is measured.
        resamples: The number of the bootstrap's resamples.
        images: The number of images in the gallery.

    Returns:
        The values for the template, or None if no run has metrics of the task, or they are of different images; and
        notes about what is missing.
    """
    shown: dict[str, Any] = dict(task=task, judged=False, sentences=[], forest=None)
    shown |= dict(classes=[], matrices=[], confused=[], precision=None, errors=[], gallery=[])
    notes: list[str] = []
    found = None
    try:
        if study.runs[0].kind is DETECTOR:
            found = _compared_detectors(study, task, resamples, images, shown, notes)
        else:
            found = _compared_classifiers(study, task, resamples, shown, notes)
    except OtherImagesError as error:
        return None, [f"the runs are of different test sets, so that nothing is judged: {one_line(error)}"]
    except ValueError as error:
        notes.append(one_line(error))
    accuracies = logged(study.runs, task)
    if found is not None:
        accuracies = {
            variant: [run.points[task.metrics[0]] for run in found.runs[found.variants.index(name)]]
            for variant, name in study.names.items()
            if name in found.variants
        }
        if not found.differences:
            notes.append(f"{found.variants[0]} is the only variant with {task.results}: nothing is compared")
        shown.update(sentences=found.sentences(), forest=forest(found) if found.differences else None, judged=True)
    if not any(accuracies.values()):
        return None, notes
    count = None if found is None else found.images
    if count and not measured_there(study.runs, task, count) and measured_there(study.runs, task, None):
        notes.append(
            f"the {task.results} are of {count} images, the paper's results of {task.images}: they are not put side by "
            "side"
        )
    points = points_of(study.runs, accuracies, study.names, study.costs, study.times)
    shown["results"] = result_table(study.runs, study.names, study.costs, task, found)
    shown["charts"] = cost_charts(study.runs, points, study.measured, task, count, study.paper)
    shown["paper"] = paper_tables(study.runs, task, count, study.paper)
    return shown, notes


def _compared_detectors(
    study: Study, task: Task, resamples: int, images: int, shown: dict[str, Any], notes: list[str]
) -> Comparison | None:
    """Compare what can be judged; add to the notes, and to what the page shows."""
    annotations, judged, said = judged_together(study.runs, task)
    notes += said
    if annotations is None or not _has_baseline(study, judged, task, notes):
        return None
    files = _files(study, judged, task)
    found = study.comparing(annotations, files, task.name, resamples)
    errors = compare_errors(annotations, files, task.name, min(resamples, _OF_ERRORS))
    shown.update(
        precision=precision_by_recall(found),
        classes=class_tables(found),
        about_classes=[f"Percent{'; in brackets the difference to the first variant' if found.differences else ''}."],
        errors=error_tables(errors, classes=None),
        told_apart=told_apart(errors),
    )
    if images:
        variants = by_variant(judged)
        firsts = [own[0] for own in variants.values()]
        names = [study.names[name] for name in variants]
        shown["gallery"], said = gallery(annotations, firsts, names, task.name, images)
        shown["captions"] = [f"{name} is {run.name}" for name, run in zip(names, firsts, strict=True)]
        notes += said
    return found


def _compared_classifiers(
    study: Study, task: Task, resamples: int, shown: dict[str, Any], notes: list[str]
) -> Comparison | None:
    """Compare what can be judged; add to the notes, and to what the page shows."""
    judged = [run for run in study.runs if run.results(task.name) is not None]
    notes += without_results(study.runs, task)
    if not _has_baseline(study, judged, task, notes):
        return None
    try:
        found = compare_classifiers(_files(study, judged, task), resamples=resamples, names=class_names(judged))
    except OtherImagesError:
        raise
    except ValueError:
        readable = _readable(judged, task, notes)
        if len(readable) == len(judged):
            raise
        if not _has_baseline(study, readable, task, notes):
            return None
        found = compare_classifiers(_files(study, readable, task), resamples=resamples, names=class_names(readable))
    classes = compare_classes(found, resamples)
    about = "Percent; where the fewest images are right."
    if found.differences:
        about = "Percent; where the variants differ most. Verdicts are adjusted for all classes and variants."
    shown.update(classes=[class_table(classes)], about_classes=[about, *classes_told_apart(classes)])
    confused = confusion(found)
    shown.update(matrices=matrices(confused), confused=most_confused(confused))
    return found


def _has_baseline(study: Study, judged: Sequence[Run], task: Task, notes: list[str]) -> bool:
    """Whether there is anything to judge, and among it what the rest is compared with; if not, a note says why."""
    variants = by_variant(judged)
    baseline = study.runs[0].variant
    if variants and baseline not in variants:
        notes.append(
            f"{study.names[baseline]}, with which the others are compared, has no {task.results} that can be judged: "
            "nothing is judged; name another --baseline"
        )
    return baseline in variants


def _files(study: Study, judged: Sequence[Run], task: Task) -> Files:
    variants = by_variant(judged)
    return [(study.names[name], [str(run.results(task.name)) for run in own]) for name, own in variants.items()]


def _readable(runs: Sequence[Run], task: Task, notes: list[str]) -> list[Run]:
    """The runs whose predictions can be read; a note says what is wrong with each of the others."""
    found = []
    for run in runs:
        try:
            read_predictions(str(run.results(task.name)))
            found.append(run)
        except ValueError as error:
            notes.append(f"{run.name} is not judged: {one_line(error)}")
    return found
