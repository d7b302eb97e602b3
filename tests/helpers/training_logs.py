"""Reading the logs of trainings."""

import json
from pathlib import Path


def losses(work_dir: Path) -> dict[int, set[float]]:
    """The losses of each iteration, from the logs of all starts of a training."""
    found: dict[int, set[float]] = {}
    for path in work_dir.glob("*/vis_data/scalars.json"):
        for line in path.read_text().splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # an incomplete line of a killed training
            if "loss" in entry:
                found.setdefault(entry["step"], set()).add(entry["loss"])
    return found
