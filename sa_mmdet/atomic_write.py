"""Files that are whole or not there."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_aside(path: str | Path) -> Iterator[Path]:
    """A place beside a file, of the same suffix, for what is then renamed to it; an error leaves the file as it was.

    Args:
        path: The file.
    """
    path = Path(path)
    aside = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield aside
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def leftovers(folder: str | Path, suffix: str) -> list[Path]:
    """Files that killed processes were writing aside.

    Args:
        folder: Where to look.
        suffix: Of the files, such as '.pth'.
    """
    named = re.compile(rf"\..+\.\d+{re.escape(suffix)}")
    return [path for path in Path(folder).iterdir() if named.fullmatch(path.name)]
