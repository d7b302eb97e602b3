"""What a study takes before it begins: hours by a stated rule, corrected by what was measured, and disk space."""

import math
import os
import shutil
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sa_mmdet.analysis.complexity import Complexity
from sa_mmdet.evaluation.costs import count, trained_shape

from .data import images_of
from .status import clock, state_of
from .training import Training

GPU_RATE, CPU_RATE = 10e12, 50e9  # floating-point operations per second: a V100 in float32; one processor
_PER_STEP = 6  # operations per multiply-add: 2, and backward takes twice as many as forward
_BYTES = 4  # of a number
_STATES = {"SGD": 1, "Adam": 2, "AdamW": 2}  # numbers that an optimizer keeps per parameter
_RESULTS = {"bbox": 12_000, "segm": 45_000}  # bytes per test image, with 100 detections each
_LOGS = 5_000_000  # bytes


@dataclass
class Estimate:
    """What a run takes."""

    seconds: float  # of the whole training, by the rule; NaN if the config does not say enough
    measured: float  # by its own log; NaN if it has not begun
    left: float  # share that is still to be done, 0 to 1
    kept: float  # bytes of its results, logs, and those checkpoints that are kept
    while_trained: float  # bytes of further checkpoints, until it is finished


def plan(runs: Sequence[Training], jobs: int, gpus: int, work_dir: Path, keep: str) -> list[str]:
    """List the runs, what is done, the hours that are left, and the disk space that is needed and free.

    Args:
        runs: The runs.
        jobs: How many run at a time.
        gpus: How many GPUs there are.
        work_dir: The study's folder, which need not exist.
        keep: Which checkpoints of finished runs are kept.
    """
    found = [_estimate(run, gpus, keep) for run in runs]
    ratios = [one.measured / one.seconds for one in found if one.measured / one.seconds > 0]
    ratio = statistics.median(ratios) if ratios else 1.0
    width = max(len(run.name) for run in runs)
    lines, left = [], 0.0
    for run, one in zip(runs, found, strict=True):
        whole = one.measured if math.isfinite(one.measured) else one.seconds * ratio
        left += whole * one.left * run.processes
        state = state_of(run)
        hours = "hours unknown" if math.isnan(whole) else f"{_hours(whole * run.processes)} {_device(gpus)}"
        lines.append(f"{run.name:{width}}  {state}, {hours} in all")
    rule = f"by the rule 6 x multiply-adds x images x epochs / {(GPU_RATE if gpus else CPU_RATE):.0e} per second"
    if ratios:
        rule = f"by the pace of {len(ratios)} of the runs"
    if math.isnan(left):
        lines.append("left: unknown, since some configs do not say how long they train")
    else:
        at_once = jobs * runs[0].processes
        lines.append(f"left: {_hours(left)} {_device(gpus)} ({rule}), {clock(left / at_once)} with {jobs} at a time")
    lines.append(f"disk: {_gigabytes(_needed(runs, found, jobs))} needed, {_gigabytes(_free(work_dir))} free")
    return lines


def check_disk(runs: Sequence[Training], jobs: int, work_dir: Path, keep: str) -> None:
    """Refuse a study for which the disk is too small.

    Args:
        runs: The runs.
        jobs: How many run at a time.
        work_dir: The study's folder.
        keep: Which checkpoints of finished runs are kept.

    Raises:
        ValueError: It needs more than is free.
    """
    needed, free = _needed(runs, [_estimate(run, 0, keep) for run in runs], jobs), _free(work_dir)
    if needed > free:
        raise ValueError(
            f"{work_dir}: the runs need {_gigabytes(needed)} of disk space, but {_gigabytes(free)} are free: choose "
            "another --work-dir, fewer --seeds, or --keep-checkpoints none"
        )


def _needed(runs: Sequence[Training], estimates: Sequence[Estimate], jobs: int) -> float:
    """The bytes that the runs that are not finished will still write."""
    kept, further = 0.0, []
    for run, one in zip(runs, estimates, strict=True):
        if not run.is_finished:
            written = sum(path.stat().st_size for path in run.folder.glob("*.pth"))
            kept += max(0.0, one.kept - written)
            further.append(max(0.0, one.while_trained - max(0.0, written - one.kept)))
    return kept + sum(sorted(further, reverse=True)[:jobs])


def _estimate(run: Training, gpus: int, keep: str) -> Estimate:
    cost = _cost(run)
    images, epochs = images_of(run.cfg, "train"), run.epochs
    seconds = math.nan
    if cost is not None and images and epochs:
        rate = (GPU_RATE if gpus else CPU_RATE) * run.processes
        seconds = _PER_STEP * cost.total * images * epochs / rate
    progress = run.progress()
    measured = progress.steps * progress.pace if progress else math.nan
    left = 0.0 if run.is_finished else 1 - progress.done if progress else 1.0
    return Estimate(seconds, measured, left, *_bytes(run, cost, keep))


_costs: dict[tuple[str, Any], Complexity | None] = {}  # several seeds have the same


def _cost(run: Training) -> Complexity | None:
    shape = trained_shape(run.cfg)
    key = repr(run.cfg.get("model")), shape
    if key not in _costs:
        try:
            _costs[key] = count(run.cfg, shape)
        except Exception:  # what a config describes may not be countable in any way
            _costs[key] = None
    return _costs[key]


def _bytes(run: Training, cost: Complexity | None, keep: str) -> tuple[float, float]:
    """What stays of a run, and the further checkpoints while it is trained."""
    images = images_of(run.cfg, "test") or 0
    results = images * sum(_RESULTS.values()) if run.evaluator else images * 4000
    if cost is None:
        return results + _LOGS, 0.0
    wrapper = run.cfg.get("optim_wrapper") or {}
    optimizer = str((wrapper.get("optimizer") or {}).get("type")).rpartition(".")[2]
    checkpoint = _BYTES * (cost.parameters + cost.trainable * _STATES.get(optimizer, 2))
    hooks = run.cfg.get("default_hooks") or {}
    saving = hooks.get("checkpoint") or {}
    most, interval = saving.get("max_keep_ckpts", -1), saving.get("interval", 1)
    number = max(1, run.epochs // max(1, interval if isinstance(interval, int) else 1))
    number = min(number, most) if isinstance(most, int) and most > 0 else number
    number += bool(saving.get("save_best"))
    kept = dict(all=number, tested=1, none=0)[keep]
    return checkpoint * kept + results + _LOGS, checkpoint * (number - kept)


def _free(folder: Path) -> float:
    while not os.path.isdir(folder):
        folder = folder.absolute().parent
    return float(shutil.disk_usage(folder).free)


def _device(gpus: int) -> str:
    return "GPU hours" if gpus else "processor hours"


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f}" if seconds < 360_000 else f"{seconds / 3600:.0f}"


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB"
