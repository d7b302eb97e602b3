"""A report on a set of trainings beside the paper's results, as one HTML page that needs no network."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from sa_mmdet.messages import listed
from sa_mmdet.version import __version__

from .comparison import compare
from .costs import costs_of
from .plots import training_curves
from .report_parts import Comparing, Study, part_of
from .runs import Run
from .tables import MISSING, Table, read_times, run_tables, speed_table
from .tasks import Kind
from .test_sets import comparable
from .variants import by_variant, counted, distinguish, other_differences, short_names, told_by_name

PAPER_TABLES = Path(__file__).resolve().parents[1] / ".mim" / "configs" / "_paper_"
_FIRST = (*"+-0123456789", MISSING, "undefined")  # what a cell with a figure begins with


def build_report(
    runs: Sequence[Run],
    skipped: Sequence[str] = (),
    speed: Mapping[str, Any] | None = None,
    resamples: int = 1000,
    images: int = 6,
    command: str = "",
    baseline: str | None = None,
    comparing: Comparing = compare,
) -> str:
    """Build the page.

    Args:
        runs: The trainings.
        skipped: Notes about work directories that are not in the report.
        speed: The content of the benchmark tool's JSON file; without it there is no section about speed.
        resamples: The number of the bootstrap's resamples.
        images: The number of images in the gallery.
        command: The command that made the page, which the page shows.
        baseline: The variant that the others are compared with, by its name or that of one of its runs; by default the
            first without attention, or the first.
        comparing: Compares detectors' results, as :func:`.comparison.compare` does.

    Returns:
        The page as HTML.

    Raises:
        ValueError: No run is of the variant that ``baseline`` names, or there are detectors and classifiers.
    """
    kind = _kind(runs)
    every, notes = told_by_name(runs)
    every, said = distinguish(every)
    notes += said
    every = _baseline_first(every, baseline)
    own, said = counted(every)
    notes += said
    if baseline is None and len(by_variant(own)) > 1 and own[0].attention != "none":
        notes.append(
            f"no variant is without attention: the others are compared with {short_names(own)[own[0].variant]}, the "
            "first; name another with --baseline"
        )
    different = comparable(own)
    notes += different or other_differences(own)
    with_times = read_times(speed, own)
    if speed is not None and not with_times[0]:
        notes.append("--speed has no times of these runs' backbones at their depth: the charts have none")
    study = Study(own, short_names(own), costs_of(own), *with_times, PAPER_TABLES, comparing)
    parts: list[dict[str, Any]] = []
    for task in kind.tasks if not different else ():
        part, said = part_of(study, task, resamples, 0 if any(one["gallery"] for one in parts) else images)
        parts += [part] if part else []
        notes += said
    if all(run.results(task.name) is None for run in own for task in kind.tasks):
        files = " or ".join(name for task in kind.tasks for name in task.files)
        notes.append(f"no run has {files} ({kind.tasks[0].command}): nothing is judged")
    pages = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    pages.filters |= dict(sentence=_sentence, kinds=_kinds)
    return pages.get_template("report.html").render(
        version=__version__,
        command=command,
        kind=kind,
        skipped=[*skipped, *dict.fromkeys(notes), *(f"{run.name}: {note}" for run in every for note in run.notes)],
        subject=_subject(own),
        parts=parts,
        runs=run_tables(every),
        speed=speed_table(speed),
        curves=training_curves(by_variant(every), short_names(every)),
        provenance=[dict(run=run.name, config=run.text, **run.provenance) for run in every],
    )


def _kind(runs: Sequence[Run]) -> Kind:
    first, *others = runs
    odd = next((run for run in others if run.kind is not first.kind), None)
    if odd is not None:
        raise ValueError(
            f"{first.folder} is of a {first.kind.name}, {odd.folder} of a {odd.kind.name}, whose metrics are not to be "
            "put side by side: give detectors or classifiers"
        )
    return first.kind


def _baseline_first(runs: Sequence[Run], baseline: str | None) -> list[Run]:
    names = short_names(runs)
    if baseline is None:
        chosen = next((run.variant for run in runs if run.attention == "none"), runs[0].variant)
    else:
        found = [run.variant for run in runs if baseline in (run.variant, names[run.variant], run.name)]
        if not found:
            known = dict.fromkeys(run.variant for run in runs)
            raise ValueError(
                f"baseline={baseline!r} is none of the variants: choose one of {listed(known, len(known))}"
            )
        chosen = found[0]
    return sorted(runs, key=lambda run: run.variant != chosen)


def _subject(runs: Sequence[Run]) -> str:
    """What all variants have in common: the detector or classifier, the backbone, the test set."""
    common = [
        values.pop() for values in ({run.family for run in runs}, {run.backbone for run in runs}) if len(values) == 1
    ]
    tested = {run.test_set for run in runs}
    return _sentence(", ".join([*common, *(f"tested on {name}" for name in tested if len(tested) == 1 and name)]))


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _kinds(table: Table) -> list[str]:
    """For each column 'text' or 'figures'; those are aligned to the right."""
    columns = zip(table["header"], *table["rows"], strict=True)
    figures = [all(cell.startswith(_FIRST) for cell in column[1:]) for column in columns]
    return ["figures" if is_figures and number else "text" for number, is_figures in enumerate(figures)]
