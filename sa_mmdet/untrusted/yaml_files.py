"""YAML of others: plain data, without the calls and objects that it can spell."""

from typing import IO, Any

import yaml

from .errors import RefusedFileError
from .records import check_extent


class _PlainLoader(yaml.SafeLoader):
    """PyYAML's safe loader, with the tuples that MMEngine's configs hold."""


_PlainLoader.add_constructor(
    "tag:yaml.org,2002:python/tuple", lambda loader, node: tuple(loader.construct_sequence(node, deep=True))
)


def read_yaml(file: IO[str]) -> Any:
    """Read a YAML file.

    Args:
        file: Open for reading.

    Raises:
        RefusedFileError: It holds more than plain data, refers to its own parts again and again, or is damaged.
    """
    text = file.read()
    try:
        content = yaml.load(text, Loader=_PlainLoader)
        check_extent(content, len(text))
        return content
    except RefusedFileError as error:
        raise RefusedFileError(f"a YAML file {error}") from error
    except Exception as error:  # its constructors raise anything
        reason = getattr(error, "problem", None) or type(error).__name__
        raise RefusedFileError(f"a YAML file holds more than plain data, or is damaged: {reason!r}") from error
