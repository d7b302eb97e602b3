"""Atomic writes: a file or folder is complete or it is not there."""

import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

_NAMED = re.compile(r"\.unfinished-[0-9a-f]{16}")
_LOCK = "lock"
_YOUNG = 10  # seconds


def check_folder(path: str | Path | None) -> None:
    """Refuse a target whose folder does not exist, before anything is computed for it.

    Args:
        path: The file or folder to be written; nothing is checked if None.

    Raises:
        FileNotFoundError: The folder that should hold it does not exist.
    """
    if path is not None and not Path(path).parent.is_dir():
        raise FileNotFoundError(f"the folder {Path(path).parent} does not exist: make it first")


@contextmanager
def temporary_beside(path: str | Path) -> Iterator[Path]:
    """Give a temporary path on the same disk with the same name; what is left there at the end is removed.

    It is in a folder beside the target with a name that nobody can guess, which only this user can enter: nobody can
    put a link there. The folder is locked while it is in use, see :func:`remove_unfinished`.

    Args:
        path: The file or folder that the temporary path stands in for.

    Raises:
        FileNotFoundError: The folder that should hold it does not exist.
    """
    path = Path(path)
    check_folder(path)
    folder = path.parent / f".unfinished-{secrets.token_hex(8)}"
    folder.mkdir(mode=0o700)
    try:
        with _locked(folder / _LOCK):
            yield folder / path.name
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Give a temporary path to write to, and rename it to ``path`` afterwards; on an error ``path`` stays as it was.

    A file that is replaced keeps its permissions.

    Args:
        path: The file to write, or the folder to make; a folder must not exist yet.
    """
    with temporary_beside(path) as temporary:
        yield temporary
        replace_file(temporary, path)


def replace_file(temporary: Path, path: str | Path) -> Path:
    """Rename a file to another one's place, with the permissions that the other one had, or those of a new file.

    Args:
        temporary: The new file or folder, from :func:`temporary_beside`.
        path: Its place. A link there is replaced, not followed.

    Returns:
        The place.
    """
    path = Path(path)
    if temporary.is_file():  # some libraries write files that nobody else may read
        usual = path if path.is_file() and not path.is_symlink() else temporary.parent / _LOCK
        temporary.chmod(stat.S_IMODE(usual.stat().st_mode))
        _flush(temporary)
    temporary.replace(path)
    _flush(path.parent)
    return path


def _flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk: a power cut must not undo what was renamed."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def atomic_write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically.

    Args:
        path: The file.
        text: Its new content.
    """
    with atomic_write(path) as temporary:
        temporary.write_text(text)


def unfinished_files(folder: str | Path, suffix: str = "") -> list[Path]:
    """List the temporary files in a folder, those that are being written and those that killed processes left.

    Args:
        folder: Where to look.
        suffix: The suffix of the files, such as '.pth'.
    """
    return [path for inner in _unfinished_folders(folder) for path in inner.glob(f"*{suffix}") if path.name != _LOCK]


def remove_unfinished(folder: str | Path) -> None:
    """Remove the temporary files that killed processes left, and nothing that a process is writing.

    Args:
        folder: Where to look; it need not exist.
    """
    for inner in _unfinished_folders(folder):
        # A younger one may not be locked yet.
        if time.time() - inner.stat().st_mtime > _YOUNG and _is_free(inner / _LOCK):
            shutil.rmtree(inner, ignore_errors=True)


def _unfinished_folders(folder: str | Path) -> list[Path]:
    folder = Path(folder)
    if not folder.is_dir():
        return []
    return [
        path for path in folder.iterdir() if _NAMED.fullmatch(path.name) and path.is_dir() and not path.is_symlink()
    ]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock, which the system releases when the process ends, however it ends."""
    with path.open("w") as file:
        _lock(file)
        yield


def _lock(file: IO[str]) -> bool:
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # another process holds it, or the disk has no locks
        return False
    return True


def _is_free(lock: Path) -> bool:
    try:
        with lock.open("r+") as file:
            return _lock(file)
    except FileNotFoundError:  # its process was killed before it had one
        return True
    except OSError:
        return False
