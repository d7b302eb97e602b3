"""Reading the logs of trainings."""

import json
from collections.abc import Iterator
from pathlib import Path


def losses(work_dir: Path) -> dict[int, set[float]]:
    """The losses of each iteration, from the logs of all starts of a training."""
    found: dict[int, set[float]] = {}
    for path in _logs(work_dir):
        for step, loss in _entries(path):
            found.setdefault(step, set()).add(loss)
    return found


def last_step(work_dir: Path) -> int:
    """The last iteration that the last start of a training has logged; 0 if none."""
    return max((step for step, _ in _entries(max(_logs(work_dir)))), default=0)


def _logs(work_dir: Path) -> list[Path]:
    """The logs of all starts, whose folders are named by their time."""
    return list(work_dir.glob("*/vis_data/scalars.json"))


def _entries(path: Path) -> Iterator[tuple[int, float]]:
    for line in path.read_text().splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # an incomplete line of a killed training
        if "loss" in entry:
            yield entry["step"], entry["loss"]
