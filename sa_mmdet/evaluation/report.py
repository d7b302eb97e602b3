"""A report on a set of trainings beside the paper's results, as one HTML page that needs no network."""

import math
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from sa_mmdet.messages import short
from sa_mmdet.version import __version__

from .average_precision import TASKS
from .comparison import Comparison, compare
from .error_types_comparison import compare_errors
from .error_types_tables import error_tables, told_apart
from .gallery import gallery
from .plots import precision_by_recall, training_curves
from .runs import Run
from .tables import MISSING, Table, paper_tables, percent, run_table, speed_table
from .variants import tell_apart

PAPER_TABLES = Path(__file__).resolve().parents[1] / ".mim" / "configs" / "_paper_"


def build_report(
    runs: Sequence[Run],
    skipped: Sequence[str] = (),
    speed: Mapping[str, Any] | None = None,
    resamples: int = 1000,
    images: int = 6,
    command: str = "",
    baseline: str | None = None,
) -> str:
    """Build the page.

    Args:
        runs: The trainings.
        skipped: Notes about work directories that are not in the report.
        speed: The content of the benchmark tool's JSON file; without it there is no section about speed.
        resamples: The number of the bootstrap's resamples.
        images: The number of images in the gallery.
        command: The command that made the page, which the page shows.
        baseline: The variant that the others are compared with; by default the first without attention, or the first.

    Returns:
        The page as HTML.

    Raises:
        ValueError: No run is of the variant that ``baseline`` names.
    """
    differences = tell_apart(runs)
    runs = _baseline_first(runs, baseline)
    comparisons, notes = _compare(runs, resamples, images)
    template = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    ).get_template("report.html")
    return template.render(
        version=__version__,
        command=command,
        skipped=[*skipped, *differences, *notes, *(f"{run.name}: {note}" for run in runs for note in run.notes)],
        runs=run_table(runs),
        paper=paper_tables(runs, PAPER_TABLES),
        speed=speed_table(speed),
        curves=training_curves(_by_variant(runs)),
        comparisons=comparisons,
        provenance=[dict(run=run.name, config=run.cfg.pretty_text, **run.provenance) for run in runs],
    )


def _baseline_first(runs: Sequence[Run], baseline: str | None) -> list[Run]:
    if baseline is None:
        chosen = next((run.variant for run in runs if run.attention == "none"), runs[0].variant)
    else:
        chosen = baseline
        if all(run.variant != baseline for run in runs):
            known = ", ".join(dict.fromkeys(run.variant for run in runs))
            raise ValueError(f"baseline={baseline!r} is none of the variants: choose one of {known}")
    return sorted(runs, key=lambda run: run.variant != chosen)


def _by_variant(runs: Sequence[Run]) -> dict[str, list[Run]]:
    variants: dict[str, list[Run]] = {}
    for run in runs:
        variants.setdefault(run.variant, []).append(run)
    return variants


def _compare(runs: Sequence[Run], resamples: int, images: int) -> tuple[list[dict[str, Any]], list[str]]:
    """For each task a comparison, if there are results and annotations; and notes about what is missing."""
    found: list[dict[str, Any]] = []
    notes: list[str] = []
    for task, name in TASKS.items():
        variants = _by_variant([run for run in runs if run.results(task) is not None])
        if not variants:
            continue
        annotations = {run.annotations for own in variants.values() for run in own}
        first = next(iter(variants.values()))[0].annotations
        if len(annotations) > 1 or not os.path.isfile(first):
            missing = f"cannot be evaluated without {short(str(first))}"
            what = "belong to different images" if len(annotations) > 1 else missing
            notes.append(f"the {name} results {what}: no significance, no images")
            continue
        try:
            compared, said = _compare_task(task, variants, resamples, images if not found else 0)
            found.append(compared)
            notes += said
        except ValueError as error:
            notes.append(str(error))
    if not found:
        notes.append("no run has results.bbox.json or results.segm.json (run_comparison keeps them): no significance")
    return found, notes


def _compare_task(
    task: str, variants: Mapping[str, Sequence[Run]], resamples: int, images: int
) -> tuple[dict[str, Any], list[str]]:
    firsts = [own[0] for own in variants.values()]
    annotations = firsts[0].annotations
    files = [(name, [str(run.results(task)) for run in own]) for name, own in variants.items()]
    found = compare(annotations, files, task, resamples)
    errors = compare_errors(annotations, files, task, resamples)
    shown, notes = gallery(annotations, firsts, task, images) if images else ([], [])
    compared = dict(
        task=TASKS[task],
        sentences=found.sentences(),
        precision=precision_by_recall(found),
        classes=_class_table(found),
        errors=error_tables(errors, classes=None),
        told_apart=told_apart(errors),
        gallery=shown,
    )
    return compared, notes


def _class_table(found: Comparison) -> Table:
    header = ["class", *found.variants, *(f"{name} - first" for name in found.variants[1:])]
    rows = []
    for kind in found.runs[0][0].per_class:
        values = [statistics.mean(run.per_class[kind] for run in runs) for runs in found.runs]
        gains = [f"{100 * (value - values[0]):+.1f}" if math.isfinite(value) else MISSING for value in values[1:]]
        rows.append([kind, *(percent(value) for value in values), *gains])
    return dict(header=header, rows=rows)
