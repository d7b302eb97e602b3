"""Which checkpoint ``--resume`` takes: the newest complete one, by what the checkpoints themselves record."""

import functools
import zipfile
from pathlib import Path
from typing import Any

from mmengine.dist import all_gather_object, get_world_size

from sa_mmdet.compat import load_tensors

from .exact_resume import STOPPED, checkpoint_hook
from .safe_checkpoint import is_local


def is_complete(path: str | Path) -> bool:
    """Whether a file is an archive that holds a checkpoint, and all checksums in it fit."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/data.pkl") for name in archive.namelist()) and archive.testzip() is None
    except (OSError, zipfile.BadZipFile, ValueError, RuntimeError, NotImplementedError):
        return False


def _recorded(path: Path) -> tuple[int, int, int]:
    """How far a checkpoint is: iterations, epochs, and whether it was saved later in the same place."""
    try:
        meta = load_tensors(path, map_location="cpu")["meta"]
        return int(meta["iter"]), int(meta["epoch"]), path.stat().st_mtime_ns
    except Exception:  # a broken file makes the loader raise anything
        return -1, -1, 0


def choose(runner: Any) -> str | None:
    """Choose the checkpoint that a runner resumes from when none is named.

    Args:
        runner: A runner of MMEngine, with its hooks.

    Returns:
        A path; None if there is no checkpoint, or if only MMEngine can read it (a folder, or an address).

    Raises:
        ValueError: There are checkpoints, but none of them is complete, or the processes would take different ones.
    """
    record = Path(runner.work_dir) / "last_checkpoint"
    last = record.read_text().strip() if record.is_file() else ""
    if last and (not is_local(last) or Path(last).is_dir()):
        return None
    hook = checkpoint_hook(runner)
    out_dir, template = getattr(hook, "out_dir", None), getattr(hook, "filename_tmpl", "*.pth")
    folder = Path(runner.work_dir if out_dir is None else Path(out_dir, Path(runner.work_dir).name))
    found = {path for name in (template.replace("{}", "*"), STOPPED) for path in folder.glob(name) if path.is_file()}
    found |= {Path(last)} if last and Path(last).is_file() else set()
    recorded = functools.cache(_recorded)  # each file is read once
    ordered = sorted(found, key=recorded, reverse=True) if len(found) > 1 else list(found)
    chosen = next((path for path in ordered if is_complete(path)), None)
    if chosen is None and (last or found):
        raise ValueError(
            f"--resume: none of the checkpoints in {folder} is complete ({last or ordered[0]} was the last): remove "
            f"them and {record} to start from the beginning, or name another checkpoint after --resume"
        )
    if get_world_size() > 1:
        _check_agreement(None if chosen is None else (chosen.name, chosen.stat().st_size, recorded(chosen)[:2]))
    if chosen is not None and str(chosen) != last:
        runner.logger.warning(f"{last or record} is not the newest complete checkpoint: resuming from {chosen}")
    return None if chosen is None else str(chosen)


def check_named(path: str) -> None:
    """Check a checkpoint that the user names after ``--resume``.

    Raises:
        ValueError: It is a file that is not complete.
    """
    if is_local(path) and zipfile.is_zipfile(path) and not is_complete(path):
        raise ValueError(f"--resume: {path} is damaged, a checksum in it is wrong: copy it again, or name another one")


def _check_agreement(mine: tuple[str, int, tuple[int, int]] | None) -> None:
    """Refuse that processes on machines without a shared disk continue with different checkpoints.

    Args:
        mine: Name, size and position of the checkpoint that this process has chosen.
    """
    for rank, other in enumerate(all_gather_object(mine)):
        if other != mine:
            raise ValueError(
                f"--resume: process {rank} finds the checkpoint {other and other[0]}, another one {mine and mine[0]}: "
                "put work_dir on a disk that all machines share, or copy the newest checkpoint and last_checkpoint to "
                "the same folder of each machine"
            )
