"""YAML of others: plain data, without the calls and objects that it can spell."""

import re
from typing import IO, Any

import yaml

from .errors import RefusedFileError
from .records import check_extent

# Levels that PyYAML's C code reads: it calls itself for each, and more could exhaust the stack of a thread.
_DEEPEST = 300
_START = re.compile("(?:^|[\r\x85\u2028\u2029\ufeff])[ \t?:-]*", re.MULTILINE)


class _PlainLoader(yaml.SafeLoader):
    """PyYAML's safe loader, with the tuples that MMEngine's configs hold."""


class _FastLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """The same, with a parser in C, where PyYAML has it; MMEngine reads a hundred files for each name of a config."""


for _loader in (_PlainLoader, _FastLoader):
    _loader.add_constructor(
        "tag:yaml.org,2002:python/tuple", lambda loader, node: tuple(loader.construct_sequence(node, deep=True))
    )


def _deepest(text: str) -> int:
    """A number of levels that a YAML text cannot exceed.

    Each level has its own bracket, or begins in a column in which at most one other level around it begins; before it
    the line has only spaces and the signs of list entries, keys and values.
    """
    return text.count("[") + text.count("{") + 2 * (1 + max(len(start.group()) for start in _START.finditer(text)))


def read_yaml(file: IO[str]) -> Any:
    """Read a YAML file.

    Args:
        file: Open for reading.

    Raises:
        RefusedFileError: It holds more than plain data, refers to its own parts again and again, or is damaged.
    """
    text = file.read()
    try:
        content = yaml.load(text, Loader=_FastLoader if _deepest(text) <= _DEEPEST else _PlainLoader)
        check_extent(content, len(text))
        return content
    except RefusedFileError as error:
        raise RefusedFileError(f"a YAML file {error}") from error
    except Exception as error:  # its constructors raise anything
        reason = getattr(error, "problem", None) or type(error).__name__
        raise RefusedFileError(f"a YAML file holds more than plain data, or is damaged: {reason!r}") from error
