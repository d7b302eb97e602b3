"""JSON of others, with one kind of error for all that can be wrong with it."""

import json
from pathlib import Path
from typing import Any

from sa_mmdet.messages import one_line

from .errors import RefusedFileError


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
