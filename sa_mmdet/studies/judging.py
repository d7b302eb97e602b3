"""Judging the finished runs of a study: a comparison and a report for each group of configs."""

import json
import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sa_mmdet.atomic_write import atomic_write_text
from sa_mmdet.evaluation import TASKS, Comparison, compare, read_run, without_nan
from sa_mmdet.evaluation.classification import compare_classifiers
from sa_mmdet.evaluation.files import evaluate_files
from sa_mmdet.evaluation.report import build_report

from .paper import Group, beside_paper
from .results import check_study, complete_results
from .study import Study


class Judge:
    """Compares the runs of a study's groups, writes what it found, and tells it.

    Args:
        study: The study.
        resamples: The number of resamples of the images.
        level: The confidence level of the intervals, between 0 and 1.
        difference: The difference, 0 to 1, of which to say how many runs would show it; None to say nothing.
        command: The command that all of this is of, as a list of arguments.
        say: Prints lines.
    """

    def __init__(
        self,
        study: Study,
        resamples: int,
        level: float,
        difference: float | None,
        command: Sequence[str],
        say: Callable[[str], None],
    ) -> None:
        self._study, self._resamples, self._level = study, resamples, level
        self._difference, self._command, self._say = difference, list(command), say
        self._known: dict[str, Comparison] = {}

    def check(self) -> None:
        """Refuse a folder that holds the comparison of other configs.

        Raises:
            ValueError: It does.
        """
        for group in self._study.groups:
            check_study(self._path(group, "comparison", "json"), list(self._study.of(group)))

    def judge(self, group: Group) -> list[Path]:
        """Compare a group's runs, which are all finished.

        Args:
            group: The configs.

        Returns:
            The files that were written.

        Raises:
            ValueError: Results cannot be read, or are not of these runs.
        """
        runs = self._study.of(group)
        first = next(iter(runs.values()))
        written: dict[str, Any] = dict(
            command=self._command, names=list(runs), seeds=[run.seed for run in first], tasks={}
        )
        found = self._of_detectors(group) if first[0].evaluator else self._of_classifiers(group)
        for comparison in found:
            self._tell(group, comparison)
            written["tasks"][comparison.task] = _as_json(comparison)
        path = self._path(group, "comparison", "json")
        atomic_write_text(path, json.dumps(without_nan(written), indent=2))
        return [path]

    def report(self, group: Group) -> list[Path]:
        """Write the page about a group's runs; say why, where there is none.

        Args:
            group: The configs, after :meth:`judge`.

        Returns:
            The file that was written, if there is one.
        """
        runs, skipped = [], []
        for run in (run for own in self._study.of(group).values() for run in own):
            try:
                runs.append(read_run(run.folder))
            except ValueError as error:  # without evaluations during the training, for example
                skipped.append(str(error))
        if not runs:
            self._say(f"no report is written: {skipped[0]}")
            return []
        command = shlex.join(["python", "tools/analysis_tools/run_comparison.py", *self._command])
        path = self._path(group, "report", "html")
        options: dict[str, Any] = dict(resamples=self._resamples, command=command, comparing=self._compared)
        atomic_write_text(path, build_report(runs, skipped, baseline=runs[0].name, **options))
        self._known.clear()  # it holds the evaluations of all runs
        return [path]

    def _path(self, group: Group, name: str, ending: str) -> Path:
        return self._study.work_dir / f"{name}{f'_{group.name}' if group.name else ''}.{ending}"

    def _of_detectors(self, group: Group) -> list[Comparison]:
        runs = self._study.of(group)
        annotations = next(iter(runs.values()))[0].annotations
        found = []
        for task in TASKS:
            folders = {name: [run.folder for run in own] for name, own in runs.items()}
            files, doubts = complete_results(task, folders)
            if files:
                paths = [path for _, own in files for path in own]
                evaluations = dict(zip(paths, evaluate_files(annotations, paths, task, doubts), strict=True))
                options: dict[str, Any] = dict(show_progress=True, evaluations=evaluations)
                own = compare(annotations, files, task, self._resamples, self._level, **options)
                self._known[_key(task, [paths for _, paths in files])] = own
                found.append(own)
            for doubt in doubts:
                self._say(doubt)
        return found

    def _of_classifiers(self, group: Group) -> list[Comparison]:
        files = [(name, [run.folder / run.results for run in runs]) for name, runs in self._study.of(group).items()]
        return [compare_classifiers(files, None, self._resamples, self._level)]

    def _compared(
        self, annotations: str | Path, variants: Sequence[tuple[str, Sequence[str | Path]]], task: str, resamples: int
    ) -> Comparison:
        """What was compared before is not compared again under the names that the page gives."""
        known = self._known.get(_key(task, [paths for _, paths in variants]))
        if known is None or known.level != 0.95:
            return compare(annotations, variants, task, resamples)
        return replace(known, variants=[name for name, _ in variants])

    def _tell(self, group: Group, found: Comparison) -> None:
        count = len(found.runs[0])
        width = max(map(len, found.variants))
        seeds = "one seed" if count == 1 else f"mean of {count} seeds (standard deviation from seed to seed)"
        title = f"{TASKS.get(found.task, found.task)}, {seeds}"
        self._say(f"\n{f'{group.name}, ' if group.name else ''}{title}")
        for name, mean, deviation in zip(found.variants, found.means, found.deviations, strict=True):
            cells = []
            for metric in found.metrics:
                spread = deviation[metric]
                value = f"{100 * mean[metric]:.1f}" + ("" if spread is None else f" ({100 * spread:.1f})")
                cells.append(f"{metric} {'undefined' if math.isnan(mean[metric]) else value}")
            self._say(f"{name:{width}}  {'  '.join(cells)}")
        for line in (*found.sentences(), *beside_paper(group, found)):
            self._say(line)
        if not found.differences:
            self._say("there is one config: these are several runs of it, and nothing is compared")
        if self._difference is not None:
            for line in found.plans(self._difference):
                self._say(line)


def _key(task: str, paths: Sequence[Sequence[str | Path]]) -> str:
    return repr((task, [[str(Path(path).resolve()) for path in own] for own in paths]))


def _as_json(found: Comparison) -> dict[str, Any]:
    return dict(
        runs=[[run.points for run in runs] for runs in found.runs],
        means=found.means,
        deviations=found.deviations,
        differences=found.differences,
    )
