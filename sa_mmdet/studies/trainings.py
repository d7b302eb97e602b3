"""Training and testing one run, each in processes of its own, continued where it was stopped."""

import argparse
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from mmengine.config import DictAction

from sa_mmdet.evaluation.evaluators import coco_evaluator
from sa_mmdet.evaluation.runs import read_recorded_config
from sa_mmdet.evaluation.settings import TEST, Differences, differences, told
from sa_mmdet.evaluation.test_sets import is_same_test_set
from sa_mmdet.messages import short
from sa_mmdet.untrusted import RefusedFileError

from . import launching
from .training import LOGS, Training, end_of

_END = 4096  # bytes of a log in which the error that ended a tool is searched
_LAST = "last_checkpoint"  # MMEngine's file that names it


def train_and_test(
    training: Training, variables: Mapping[str, str] | None = None, descriptors: Sequence[int] = ()
) -> bool:
    """Train a config, and write its predictions for the test images into the work directory.

    They are in ``results.<task>.json`` for a detector and in ``results.pkl`` for a classifier. A finished run is not
    repeated; an interrupted training resumes at its last checkpoint.

    Args:
        training: What to train.
        variables: The environment variables of the training and the test; this process's own if None.
        descriptors: File descriptors that they keep open.

    Returns:
        Whether anything was done; False for a run that was finished before.

    Raises:
        ValueError: The training or the test failed, or the run was begun with other settings or tested on other
            annotations before.
    """
    folder = training.folder
    new = folder / "new"
    check_settings(training)
    if training.is_finished:
        _take_results(training)
        check_finished(training)
        return False
    run = _Tools(training, variables, descriptors)
    training.note(processes=training.processes)
    # The last of several values of a key counts.
    seeded = ("--cfg-options", *training.options, f"randomness.seed={training.seed}")
    last = folder / _LAST
    # A training that a hook ended early, such as MMEngine's EarlyStoppingHook, would go on.
    if not (training.facts().get("trained") is True and last.is_file() and tested_checkpoint(folder).is_file()):
        run("train", training.config, "--work-dir", folder, "--resume", *seeded)
    if not last.is_file():
        raise ValueError(f"{folder}: the training left no checkpoint")
    check_settings(training)  # train.py reads the config anew, which may have been edited since this study began
    training.note(trained=True)
    # The test writes into another folder, so that a result file in the work directory is always complete.
    if training.evaluator:
        prefix = f"{training.evaluator}.outfile_prefix={results_prefix(training)}"
        written = ["--cfg-options", *training.options, prefix]
    else:
        options = ["--cfg-options", *training.options] if training.options else []
        written = ["--out", str(new / training.results), *options]
    run("test", training.config, tested_checkpoint(folder), "--work-dir", new, *written)
    _check_test(training)
    _take_results(training)
    return True


def tested_checkpoint(folder: Path) -> Path:
    """The checkpoint that MMEngine recorded as the last: the folder's own of this name, since a folder may be a copy.

    Args:
        folder: The work directory of a training that ended.
    """
    recorded = Path((folder / _LAST).read_text().strip())
    own = folder / recorded.name
    return own if own.is_file() else recorded


def results_prefix(training: Training) -> str:
    """Where the test of a detector writes, in a form that --cfg-options keep: they drop spaces, and divide at commas.

    Args:
        training: The run.

    Raises:
        ValueError: There is no such form.
    """
    path = training.folder / "new" / "results"
    found = next((text for text in (str(path), os.path.relpath(path)) if _carried(text) == text), None)
    if found is None:
        raise ValueError(
            f"{training.folder}: --cfg-options, by which the test is told where to write, cannot hold this path: call "
            "this in a folder from which the path of --work-dir needs no spaces, commas, quotes or brackets"
        )
    return found


def _carried(text: str) -> object:
    """What comes out of --cfg-options for a value."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cfg-options", nargs="*", action=DictAction)
    try:
        return parser.parse_args(["--cfg-options", f"value={text}"]).cfg_options["value"]
    except AssertionError:  # of brackets without their partners
        return None


def check_finished(training: Training) -> None:
    """Refuse the results of a run that was trained or tested with other settings.

    Args:
        training: The run, which is finished.

    Raises:
        ValueError: The recorded settings are others.
    """
    check_settings(training)
    _check_test(training)


def check_settings(training: Training) -> None:
    """Refuse to continue or judge a run that was begun with other settings; MMEngine recorded those of each start.

    Args:
        training: What it is to be, in a work directory that need not exist.

    Raises:
        ValueError: The recorded settings are others.
    """
    folder, found = training.folder, _recorded_differences(training)
    processes = training.facts().get("processes", training.processes)
    if processes != training.processes:  # a batch of another size
        found["the number of processes"] = (processes, training.processes)
    if found:
        raise ValueError(
            f"{folder}: was begun with other settings (before, now): {told(found)}: give the old ones, name another "
            "--work-dir, or remove this one"
        )


def _recorded_differences(training: Training) -> Differences:
    folder = training.folder
    # MMEngine's runner writes the config beside the checkpoints, too, whatever the visualizer's backends are.
    beside = [path for path in [folder / Path(training.config).name] if path.suffix == ".py" and path.is_file()]
    recorded = [log.with_name("config.py") for log in sorted(folder.glob("*/vis_data/scalars.json"))]
    started = [path for path in recorded if path.is_file()] or sorted(folder.glob("*/vis_data/config.py")) or beside
    try:
        before = read_recorded_config(started[-1])
    except (IndexError, RefusedFileError):  # it has not begun, or a kill left a part of the config
        return {}
    found = differences(before, training.cfg)
    seeds = [cfg["seed"] for cfg in [before.get("randomness")] if isinstance(cfg, Mapping) and "seed" in cfg]
    if seeds and seeds[0] != training.seed:
        found["randomness.seed"] = (seeds[0], training.seed)
    return found


def _check_test(training: Training) -> None:
    """Refuse the results of a test with other settings; MMEngine recorded them."""
    folder, annotations = training.folder, training.annotations
    for config in sorted(folder.glob("new/*/vis_data/config.py"))[-1:]:
        try:
            recorded = read_recorded_config(config)
        except ValueError:
            return
        found = coco_evaluator(recorded)
        tested = str(found[1]["ann_file"]) if found else annotations
        if not _is_same(tested, annotations):
            raise ValueError(
                f"{folder}: was finished and tested on {tested}, but is to be tested on {annotations}: name another "
                "--work-dir, or remove this one"
            )
        parts = [part for part in TEST if part in recorded and part != "test_evaluator"]
        others = differences(recorded, training.cfg, parts) if training.evaluator else {}
        if others:
            raise ValueError(
                f"{folder}: was tested with other settings (then, now): {told(others)}: give the old ones, or remove "
                f"{training.results} there and in {config.parents[2]} to have it tested anew"
            )


def _is_same(tested: str, annotations: str) -> bool:
    """Whether two files have the same images and objects; of one that is not here any more, only the name is known."""
    if not Path(tested).is_file() and Path(tested).resolve() != Path(annotations).resolve():
        return Path(tested).name == Path(annotations).name
    return is_same_test_set(tested, annotations)


def _take_results(training: Training) -> None:
    """Move the results of a finished test; if a kill came between two files, the next start moves the rest."""
    for path in sorted((training.folder / "new").glob(training.results)):
        path.replace(training.folder / path.name)


class StoppedError(ValueError):
    """A training or test was told to end, which is no failure: it goes on when it is called again."""


class _Tools:
    """Runs train.py and test.py for a training; what they print is appended to logs in its work directory."""

    def __init__(self, training: Training, variables: Mapping[str, str] | None, descriptors: Sequence[int]) -> None:
        self._training, self._variables, self._descriptors = training, variables, descriptors
        self._tools = launching.DETECTOR_TOOLS if training.evaluator else launching.classifier_tools()

    def __call__(self, name: str, *arguments: object) -> None:
        folder = self._training.folder
        folder.mkdir(parents=True, exist_ok=True)
        log = folder / LOGS[name]
        command = launching.command(self._tools / f"{name}.py", self._training.processes, arguments)
        status = launching.run(command, log, self._variables, self._descriptors)
        if launching.was_stopped(status):
            raise StoppedError(f"{folder}: {name}.py was told to end: run this again to continue")
        if status:
            raise ValueError(
                f"{folder}: {name}.py {arguments[0]} ended with status {status}{_last_error(log)}: see {log}, and run "
                "this again to continue"
            )


def _last_error(log: Path) -> str:
    """The last line of a log that says an error, in brackets."""
    lines = end_of(log, _END).splitlines()
    errors = [
        line.strip() for line in lines if re.match(r"[\w.]*(Error|Exception|Interrupt)\b|\w+\.py: ", line.strip())
    ]
    return f" ({short(errors[-1])})" if errors else ""
