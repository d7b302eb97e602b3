"""Removing the checkpoints of finished runs, which fill a disk."""

from pathlib import Path

from .trainings import tested_checkpoint

KEPT = ("all", "tested", "none")


def remove_checkpoints(folder: Path, keep: str) -> None:
    """Delete the checkpoints of a run that was tested.

    Args:
        folder: Its work directory.
        keep: 'all' deletes nothing, 'tested' all but the one that was tested, 'none' all of them.
    """
    if keep == "all":
        return
    kept = tested_checkpoint(folder).resolve() if keep == "tested" else None
    for path in folder.glob("*.pth"):
        if path.resolve() != kept:
            path.unlink()
