"""Atomic writes: a file or folder is complete or it is not there."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def temporary_beside(path: str | Path) -> Iterator[Path]:
    """Give a temporary path in the same folder and with the same suffix; what is left there at the end is removed.

    Args:
        path: The file or folder that the temporary path stands in for.

    Raises:
        FileNotFoundError: The folder that should hold it does not exist.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder {path.parent} does not exist: make it first")
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Give a temporary path to write to, and rename it to ``path`` afterwards; on an error ``path`` stays as it was.

    Args:
        path: The file to write, or the folder to make; a folder must not exist yet.
    """
    with temporary_beside(path) as temporary:
        yield temporary
        if temporary.is_file():
            _flush(temporary)
        temporary.replace(path)
        _flush(Path(path).parent)


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


def unfinished_files(folder: str | Path, suffix: str) -> list[Path]:
    """List the temporary files that killed processes left behind.

    Args:
        folder: Where to look.
        suffix: The suffix of the files that were being written, such as '.pth'.
    """
    named = re.compile(rf"\..+\.\d+{re.escape(suffix)}")
    return [path for path in Path(folder).iterdir() if named.fullmatch(path.name)]
