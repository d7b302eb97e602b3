"""Training and testing configs, each in a process of its own."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from .evaluators import coco_evaluator
from .runs import read_recorded_config

TOOLS = Path(__file__).resolve().parents[1] / ".mim" / "tools"


def train_and_test(
    config: str, seed: int, folder: Path, options: Sequence[str], evaluator: str, annotations: str
) -> bool:
    """Train a config, and write its detections on the test images to ``results.<task>.json`` in the work directory.

    A finished run is not repeated; an interrupted training resumes at its last checkpoint.

    Args:
        config: The config's path.
        seed: The training's random seed.
        folder: The work directory.
        options: Further ``KEY=VALUE`` pairs for --cfg-options.
        evaluator: The key of the evaluator that writes the detections, such as 'test_evaluator'.
        annotations: The file of annotations that it tests on.

    Returns:
        Whether anything was done; False for a run that was finished before.

    Raises:
        ValueError: The training or the test failed, or the run was tested on other annotations before.
    """
    new = folder / "new"
    if list(folder.glob("results.*.json")):
        _take_results(new, folder)
        _check_annotations(folder, annotations)
        return False
    # The last of several values of a key counts.
    seeded = ("--cfg-options", *options, f"randomness.seed={seed}")
    _run_tool(folder, "train", config, "--work-dir", folder, "--resume", *seeded)
    last = folder / "last_checkpoint"
    if not last.is_file():
        raise ValueError(f"{folder}: the training left no checkpoint")
    # The test writes into another folder, so that a result file in the work directory is always complete.
    prefixed = ("--cfg-options", *options, f"{evaluator}.outfile_prefix={new / 'results'}")
    _run_tool(folder, "test", config, last.read_text().strip(), "--work-dir", new, *prefixed)
    _take_results(new, folder)
    return True


def _check_annotations(folder: Path, annotations: str) -> None:
    """Refuse the results of a run that was finished with other options; MMEngine recorded those of its test."""
    for config in sorted(folder.glob("new/*/vis_data/config.py"))[-1:]:
        try:
            found = coco_evaluator(read_recorded_config(config))
        except ValueError:
            return
        tested = str(found[1]["ann_file"]) if found else annotations
        if Path(tested).resolve() != Path(annotations).resolve():
            raise ValueError(
                f"{folder}: was finished and tested on {tested}, but is to be tested on {annotations}: name another "
                "--work-dir, or remove this one"
            )


def _take_results(new: Path, folder: Path) -> None:
    """Move the results of a finished test; if a kill came between two files, the next start moves the rest."""
    for path in sorted(new.glob("results.*.json")):
        path.replace(folder / path.name)


def _run_tool(folder: Path, name: str, *arguments: object) -> None:
    command = [sys.executable, str(TOOLS / f"{name}.py"), *map(str, arguments)]
    status = subprocess.run(command, check=False).returncode
    if status:
        raise ValueError(f"{folder}: {name}.py {arguments[0]} ended with status {status}: run this again to continue")
