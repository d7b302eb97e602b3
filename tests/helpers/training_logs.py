"""What trainings logged."""

import json
from pathlib import Path


def losses(work_dir: Path) -> dict[int, set[float]]:
    """All that was logged of each iteration, by all starts."""
    found: dict[int, set[float]] = {}
    for path in work_dir.glob("*/vis_data/scalars.json"):
        for line in path.read_text().splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # a kill cut it off
            if "loss" in entry:
                found.setdefault(entry["step"], set()).add(entry["loss"])
    return found
