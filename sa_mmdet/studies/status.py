"""What is told of a study at any time: which runs are finished, running or failed, how fast, and until when."""

import statistics
import time
from collections.abc import Sequence

from .run_queue import taken
from .training import FAILED, LOGS, Training

_STATES = ("finished", "running", "stopped", "failed", "not begun")


def status(runs: Sequence[Training]) -> list[str]:
    """One line for each run, and one for the study with its expected end.

    Args:
        runs: The runs of a study.
    """
    width = max(len(run.name) for run in runs)
    states = [state_of(run) for run in runs]
    lines = [f"{run.name:{width}}  {_told(run, state)}" for run, state in zip(runs, states, strict=True)]
    counts = ", ".join(f"{states.count(state)} {state}" for state in _STATES if state in states)
    return [*lines, f"{len(runs)} runs: {counts}{_expected_end(runs, states)}"]


def state_of(run: Training) -> str:
    """'finished', 'running', 'stopped', 'failed' or 'not begun'.

    Args:
        run: A run.
    """
    if run.is_finished:
        return "finished"
    if not run.folder.is_dir():
        return "not begun"
    if (run.folder / "lock").exists():
        with taken(run.folder) as descriptor:
            if descriptor is None:
                return "running"
    if (run.folder / FAILED).is_file():
        return "failed"
    return "stopped" if (run.folder / LOGS["train"]).is_file() else "not begun"


def clock(seconds: float) -> str:
    """A duration as hours and minutes, such as '2 h 05 min', or '4 min'."""
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min"


def _told(run: Training, state: str) -> str:
    if state in ("finished", "not begun"):
        seconds = run.facts().get("seconds")
        return state + (f" in {clock(seconds)}" if state == "finished" and isinstance(seconds, float) else "")
    if state == "failed":
        return f"failed: {' '.join((run.folder / FAILED).read_text(errors='replace').split())}"
    found = run.progress()
    if (run.folder / "new").is_dir():
        return "running: is tested" if state == "running" else "stopped: trained, not tested"
    if found is None:
        return state
    left = f", {clock(found.left)} left" if state == "running" else ""
    return f"{state}: {found.where}, {found.pace:.2f} s per step{left}"


def _expected_end(runs: Sequence[Training], states: Sequence[str]) -> str:
    """When all runs will be trained if as many as now go on at a time; nothing if none is running."""
    whole, left, waiting = [], [], 0
    for run, state in zip(runs, states, strict=True):
        found = run.progress() if state in ("running", "stopped", "failed") else None
        seconds = run.facts().get("seconds")
        if state == "finished" and isinstance(seconds, float):
            whole.append(seconds)
        elif found is not None:
            whole.append(found.steps * found.pace)
        if state == "running":
            left.append(found.left if found is not None else None)
        elif state != "finished":
            waiting += 1
    if not left or not whole:
        return ""
    usual = statistics.mean(whole)
    known = [usual if seconds is None else seconds for seconds in left]
    end = time.time() + max(max(known), (sum(known) + waiting * usual) / len(known))
    return f"; expected end {time.strftime('%Y-%m-%d %H:%M', time.localtime(end))}, {len(left)} at a time"
