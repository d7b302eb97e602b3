"""Training and testing configs, each in a process of its own."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

TOOLS = Path(__file__).resolve().parents[1] / ".mim" / "tools"


def train_and_test(config: str, seed: int, folder: Path, options: Sequence[str] = ()) -> bool:
    """Train a config, and write its detections on the test images to ``results.<task>.json`` in the work directory.

    A finished run is not repeated; an interrupted training resumes at its last checkpoint.

    Args:
        config: The config's path.
        seed: The training's random seed.
        folder: The work directory.
        options: Further ``KEY=VALUE`` pairs for --cfg-options.

    Returns:
        Whether anything was done; False for a run that was finished before.

    Raises:
        ValueError: The training or the test failed.
    """
    new = folder / "new"
    if list(folder.glob("results.*.json")):
        _take_results(new, folder)
        return False
    _run_tool(
        folder, "train", config, "--work-dir", folder, "--resume", "--cfg-options", f"randomness.seed={seed}", *options
    )
    last = folder / "last_checkpoint"
    if not last.is_file():
        raise ValueError(f"{folder}: the training left no checkpoint")
    # The test writes into another folder, so that a result file in the work directory is always complete.
    prefix = f"test_evaluator.outfile_prefix={new / 'results'}"
    checkpoint = last.read_text().strip()
    _run_tool(folder, "test", config, checkpoint, "--work-dir", new, "--cfg-options", prefix, *options)
    _take_results(new, folder)
    return True


def _take_results(new: Path, folder: Path) -> None:
    """Move the results of a finished test; if a kill came between two files, the next start moves the rest."""
    for path in sorted(new.glob("results.*.json")):
        path.replace(folder / path.name)


def _run_tool(folder: Path, name: str, *arguments: object) -> None:
    command = [sys.executable, str(TOOLS / f"{name}.py"), *map(str, arguments)]
    status = subprocess.run(command, check=False).returncode
    if status:
        raise ValueError(f"{folder}: {name}.py {arguments[0]} ended with status {status}: run this again to continue")
