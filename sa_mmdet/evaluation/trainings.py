"""Training and testing configs, each in a process of its own."""

import functools
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config

from sa_mmdet.messages import short
from sa_mmdet.untrusted import RefusedFileError

from .evaluators import coco_evaluator
from .runs import read_recorded_config
from .settings import differences, told
from .test_sets import is_same_test_set

LOGS = {"train": "train.log", "test": "test.log"}  # within a run's work directory
_RESULTS = "results.*.json"
_END = 4096  # bytes of a log in which the error that ended a tool is searched
TOOLS = Path(__file__).resolve().parents[1] / ".mim" / "tools"


@dataclass(frozen=True, eq=False)
class Training:
    """One config, to be trained with one seed and tested."""

    config: str  # its path
    cfg: Config  # what it says, with the options of --cfg-options
    seed: int  # the random seed
    folder: Path  # the work directory
    evaluator: str  # the key of the evaluator that writes the detections, such as 'test_evaluator'

    @property
    def name(self) -> str:
        """The config's and the seed's name, as in the work directory."""
        return f"{self.folder.parent.name}/{self.folder.name}"

    @property
    def is_finished(self) -> bool:
        """Whether it was tested."""
        return any(self.folder.glob(_RESULTS))


def train_and_test(
    training: Training,
    options: Sequence[str],
    annotations: str,
    variables: Mapping[str, str] | None = None,
    descriptors: Sequence[int] = (),
) -> bool:
    """Train a config, and write its detections on the test images to ``results.<task>.json`` in the work directory.

    A finished run is not repeated; an interrupted training resumes at its last checkpoint.

    Args:
        training: What to train.
        options: Further ``KEY=VALUE`` pairs for --cfg-options.
        annotations: The file of annotations that it tests on.
        variables: The environment variables of the training and the test; this process's own if None.
        descriptors: File descriptors that they keep open.

    Returns:
        Whether anything was done; False for a run that was finished before.

    Raises:
        ValueError: The training or the test failed, or the run was begun with other settings or tested on other
            annotations before.
    """
    config, folder = training.config, training.folder
    new = folder / "new"
    check_settings(training)
    if training.is_finished:
        _take_results(new, folder)
        _check_annotations(folder, annotations)
        return False
    # The last of several values of a key counts.
    seeded = ("--cfg-options", *options, f"randomness.seed={training.seed}")
    run = functools.partial(_run_tool, folder, variables, descriptors)
    run("train", config, "--work-dir", folder, "--resume", *seeded)
    last = folder / "last_checkpoint"
    if not last.is_file():
        raise ValueError(f"{folder}: the training left no checkpoint")
    # The test writes into another folder, so that a result file in the work directory is always complete.
    prefixed = ("--cfg-options", *options, f"{training.evaluator}.outfile_prefix={new / 'results'}")
    run("test", config, _checkpoint(folder, last), "--work-dir", new, *prefixed)
    _take_results(new, folder)
    return True


def _checkpoint(folder: Path, last: Path) -> str:
    """The checkpoint that MMEngine recorded as the last; in a folder that was moved since, it lies in the folder."""
    recorded = last.read_text().strip()
    moved = folder / Path(recorded).name
    return str(moved) if not Path(recorded).is_file() and moved.is_file() else recorded


def check_settings(training: Training) -> None:
    """Refuse to continue or judge a run that was begun with other settings; MMEngine recorded those of each start.

    Args:
        training: What it is to be, in a work directory that need not exist.

    Raises:
        ValueError: The recorded settings are others.
    """
    folder = training.folder
    recorded = [log.with_name("config.py") for log in sorted(folder.glob("*/vis_data/scalars.json"))]
    started = [path for path in recorded if path.is_file()] or sorted(folder.glob("*/vis_data/config.py"))
    try:
        before = read_recorded_config(started[-1])
    except (IndexError, RefusedFileError):  # it has not begun, or a kill left a part of the config
        return
    found = differences(before, training.cfg)
    seeds = [cfg["seed"] for cfg in [before.get("randomness")] if isinstance(cfg, Mapping) and "seed" in cfg]
    if seeds and seeds[0] != training.seed:
        found["randomness.seed"] = (seeds[0], training.seed)
    if found:
        raise ValueError(
            f"{folder}: was begun with other settings (before, now): {told(found)}: give the old ones, name another "
            "--work-dir, or remove this one"
        )


def _check_annotations(folder: Path, annotations: str) -> None:
    """Refuse the results of a run that was finished with other options; MMEngine recorded those of its test."""
    for config in sorted(folder.glob("new/*/vis_data/config.py"))[-1:]:
        try:
            found = coco_evaluator(read_recorded_config(config))
        except ValueError:
            return
        tested = str(found[1]["ann_file"]) if found else annotations
        if not _is_same(tested, annotations):
            raise ValueError(
                f"{folder}: was finished and tested on {tested}, but is to be tested on {annotations}: name another "
                "--work-dir, or remove this one"
            )


def _is_same(tested: str, annotations: str) -> bool:
    """Whether two files have the same images and objects; of one that is not here any more, only the name is known."""
    if not Path(tested).is_file() and Path(tested).resolve() != Path(annotations).resolve():
        return Path(tested).name == Path(annotations).name
    return is_same_test_set(tested, annotations)


def _take_results(new: Path, folder: Path) -> None:
    """Move the results of a finished test; if a kill came between two files, the next start moves the rest."""
    for path in sorted(new.glob(_RESULTS)):
        path.replace(folder / path.name)


def _run_tool(
    folder: Path, variables: Mapping[str, str] | None, descriptors: Sequence[int], name: str, *arguments: object
) -> None:
    """Run train.py or test.py; what they print is appended to a log in the work directory."""
    command = [sys.executable, str(TOOLS / f"{name}.py"), *map(str, arguments)]
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / LOGS[name]
    with log.open("ab") as file:
        status = subprocess.run(
            command, check=False, stdout=file, stderr=subprocess.STDOUT, env=variables, pass_fds=tuple(descriptors)
        ).returncode
    if status:
        raise ValueError(
            f"{folder}: {name}.py {arguments[0]} ended with status {status}{_last_error(log)}: see {log}, and run this "
            "again to continue"
        )


def _last_error(log: Path) -> str:
    """The last line of a log that says an error, in brackets."""
    lines = end_of(log, _END).splitlines()
    errors = [line.strip() for line in lines if re.match(r"[\w.]*(Error|Exception|Interrupt)\b|\w+\.py: ", line)]
    return f" ({short(errors[-1])})" if errors else ""


def end_of(log: Path, count: int) -> str:
    """The end of a log.

    Args:
        log: The file.
        count: The number of bytes.
    """
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - count))
        return file.read().decode(errors="replace")
