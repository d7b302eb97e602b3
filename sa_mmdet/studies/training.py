"""One run of a study: a config, a seed, and a work directory."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config

from sa_mmdet.atomic_write import atomic_write_text
from sa_mmdet.untrusted import read_json

LOGS = {"train": "train.log", "test": "test.log"}  # within a run's work directory
FAILED = "failed.txt"  # why the last start failed
_FACTS = "run.json"
_END = 65_536  # bytes of a log in which the last line of progress is searched
# MMEngine's line of progress, such as "Epoch(train) [3][20/26] ... eta: 0:05:12 time: 0.5" or "Iter(train) [9/90] ...".
_PROGRESS = re.compile(
    r"(?:Epoch\(train\) +\[ *(?P<epoch>\d+)\]|Iter\(train\) +)\[ *(?P<step>\d+)/(?P<steps>\d+)\]"
    r".*?eta: (?:(?P<days>\d+) days?, )?(?P<left>[\d:]+) +time: (?P<pace>[\d.]+)"
)


@dataclass(frozen=True)
class Progress:
    """How far a training is, as the last line of its log says."""

    where: str  # such as 'epoch 3, step 20/26'
    done: float  # share of the training, 0 to 1
    left: float  # seconds
    pace: float  # seconds per step
    steps: int  # of the whole training


@dataclass(frozen=True, eq=False)
class Training:
    """One config, to be trained with one seed and tested."""

    config: str  # its path
    cfg: Config  # what it says, with the options
    options: Sequence[str]  # KEY=VALUE pairs for --cfg-options
    seed: int  # the random seed
    folder: Path  # the work directory
    evaluator: str  # the key of the evaluator that writes detections, such as 'test_evaluator'; '' for a classifier
    annotations: str  # of the test images; '' for a classifier
    processes: int = 1  # each on a GPU of its own, where there are GPUs

    @property
    def name(self) -> str:
        """The config's and the seed's name, as in the work directory."""
        return f"{self.folder.parent.name}/{self.folder.name}"

    @property
    def results(self) -> str:
        """The pattern of the names of the files with its predictions."""
        return "results.*.json" if self.evaluator else "results.pkl"

    @property
    def is_finished(self) -> bool:
        """Whether it was tested."""
        return any(self.folder.glob(self.results))

    @property
    def epochs(self) -> int:
        """How many epochs it takes; 0 if it is not counted in epochs."""
        found = self.cfg.get("train_cfg")
        epochs = found.get("max_epochs") if isinstance(found, dict) else None
        return epochs if isinstance(epochs, int) and not (isinstance(found, dict) and found.get("max_iters")) else 0

    def facts(self) -> dict[str, Any]:
        """What was noted of its earlier starts: 'processes', 'seconds' in all, and whether it is 'trained'."""
        try:
            found = read_json(self.folder / _FACTS)
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def seconds(self) -> float:
        """How long its starts took together, as far as it was noted."""
        found = self.facts().get("seconds")
        return float(found) if isinstance(found, int | float) else 0.0

    def note(self, **facts: Any) -> None:
        """Add to what is noted of its starts."""
        atomic_write_text(self.folder / _FACTS, json.dumps(self.facts() | facts))

    def progress(self) -> Progress | None:
        """How far it is; None if its log does not say it."""
        log = self.folder / LOGS["train"]
        found = list(_PROGRESS.finditer(end_of(log, _END))) if log.is_file() else []
        if not found:
            return None
        last = found[-1]
        step, steps = int(last["step"]), int(last["steps"])
        where = f"step {step}/{steps}"
        if last["epoch"]:
            epoch, epochs = int(last["epoch"]), max(self.epochs, int(last["epoch"]))
            where = f"epoch {epoch}/{epochs}, {where}"
            step, steps = (epoch - 1) * steps + step, epochs * steps
        clock = [int(part) for part in last["left"].split(":") if part]
        left = 86_400 * int(last["days"] or 0) + sum(60**i * part for i, part in enumerate(reversed(clock)))
        return Progress(where, step / max(1, steps), float(left), float(last["pace"]), steps)


def end_of(log: Path, count: int) -> str:
    """The end of a log.

    Args:
        log: The file.
        count: The number of bytes.
    """
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - count))
        return file.read().decode(errors="replace")
