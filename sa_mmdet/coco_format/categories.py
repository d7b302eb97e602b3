"""The categories of an annotation file, read without the rest of it, which may take minutes and gigabytes."""

import json
import mmap
import os
import re
from pathlib import Path
from typing import Any

from sa_mmdet.untrusted import RefusedFileError, read_json

_KEY = b'"categories"'
_FIRST_READ = 2**20  # bytes


def category_names(path: str | Path) -> list[Any]:
    """Read the names of the categories, in the file's order.

    Args:
        path: A file of COCO annotations.

    Raises:
        ValueError: The file cannot be read or has no list of categories with names.
    """
    try:
        categories = _alone(path) if os.path.getsize(path) else None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    if categories is None:
        try:
            content = read_json(path)
        except RefusedFileError as error:
            raise ValueError(str(error)) from error
        categories = content.get("categories") if isinstance(content, dict) else None
    if not isinstance(categories, list) or not all(isinstance(one, dict) and _is_name(one) for one in categories):
        raise ValueError(f"{path}: is not a file of COCO annotations: it needs a list 'categories' with names")
    return [one["name"] for one in categories]


def _is_name(category: dict[str, Any]) -> bool:
    return isinstance(category.get("name"), str | int | float)


def _alone(path: str | Path) -> Any:
    """The value of the key 'categories'; None unless the file has the key exactly once."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = data.find(_KEY)
        if at < 0 or data.find(_KEY, at + 1) >= 0:
            return None
        colon = re.compile(rb"\s*:\s*").match(data, at + len(_KEY))
        if colon is None:
            return None
        begin, size = colon.end(), _FIRST_READ
        while True:
            try:
                return json.JSONDecoder().raw_decode(data[begin : begin + size].decode(errors="ignore"))[0]
            except (ValueError, RecursionError):
                if begin + size >= len(data):
                    return None
                size *= 8
