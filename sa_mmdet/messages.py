"""Formatting parts of error messages."""

from collections.abc import Iterable


def one_line(error: object, limit: int | None = None) -> str:
    """Join the lines of a message to one line.

    Args:
        error: An exception or a string.
        limit: The largest number of characters; the rest is cut off. No limit if None.
    """
    return " ".join(str(error).split())[:limit]


def listed(items: Iterable[object], limit: int = 4) -> str:
    """List the first items, separated by commas, and give the number of the others, as in "a, b and 3 more".

    Args:
        items: The items.
        limit: The largest number of items to write out.
    """
    texts = [str(item) for item in items]
    rest = len(texts) - limit
    return ", ".join(texts[:limit]) + (f" and {rest} more" if rest > 0 else "")
