"""JSON of others, with one kind of error for all that can be wrong with it."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sa_mmdet.messages import one_line

from .errors import RefusedFileError

_PIECE = 2**20  # characters that are read at once
_TAIL = 2**16  # characters at a piece's end that are searched for the end of an item
_BETWEEN = re.compile(r"\}\s*,\s*\{")


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Args:
        path: The file.

    Raises:
        RefusedFileError: It cannot be opened, is not JSON, or is nested too deep; the message is one line and names it.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except RecursionError as error:
        raise RefusedFileError(f"{path}: is not readable as JSON: it is nested too deep") from error
    except OSError as error:
        raise RefusedFileError(f"{path}: is not readable as JSON: {error.strerror}") from error
    except ValueError as error:
        raise RefusedFileError(f"{path}: is not readable as JSON: {one_line(error, 200)}") from error


def read_json_parts(path: str | Path) -> Iterator[list[Any]]:
    """Read a JSON file with a list of objects in parts, which together take a tenth of the memory that the list does.

    Args:
        path: The file.

    Yields:
        Some of the list's items, in order.

    Raises:
        RefusedFileError: It is not such a file, or has no place to divide it: only :func:`read_json` can say more. This
            may be found after some parts.
    """
    try:
        yield from _parts(path)
    except (OSError, ValueError, RecursionError) as error:
        raise RefusedFileError(f"{path}: is not a JSON list of objects that can be read in parts") from error


def _parts(path: str | Path) -> Iterator[list[Any]]:
    """The items of a list, as long as each piece of the file has a place between two objects.

    What stands before such a place is valid JSON by itself only if the place is neither in a text nor in an item.
    """
    with open(path, encoding="utf-8-sig") as file:
        text = file.read(_PIECE).lstrip(" \t\n\r")
        if not text.startswith("["):
            raise ValueError
        rest = text[1:]
        while piece := file.read(_PIECE):
            rest += piece
            places = list(_BETWEEN.finditer(rest, max(0, len(rest) - _TAIL)))
            if not places:
                raise ValueError
            begin, end = places[-1].span()
            yield json.loads(f"[{rest[: begin + 1]}]")
            rest = rest[end - 1 :]
        yield json.loads(f"[{rest}")
