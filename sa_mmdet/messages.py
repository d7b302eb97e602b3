"""Parts of error messages."""

from collections.abc import Iterable


def one_line(error: object, limit: int | None = None) -> str:
    """Put a message of several lines on one.

    Args:
        error: An exception or a text.
        limit: The largest number of characters; everything if None.
    """
    return " ".join(str(error).split())[:limit]


def listed(items: Iterable[object], limit: int = 4) -> str:
    """List the first items, separated by commas, and say how many more there are.

    Args:
        items: What to list.
        limit: How many to write out.
    """
    texts = [str(item) for item in items]
    rest = len(texts) - limit
    return ", ".join(texts[:limit]) + (f" and {rest} more" if rest > 0 else "")
