"""Formatting parts of error messages."""

from collections.abc import Iterable


def printable(text: str) -> str:
    """Spell out what a terminal would act on, such as the beginning of a control sequence."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def one_line(error: object, limit: int | None = None) -> str:
    """Join the lines of a message to one line, with control characters written as escapes.

    Args:
        error: An exception or a string.
        limit: The largest number of characters; the rest is cut off. No limit if None.
    """
    return printable(" ".join(str(error).split()))[:limit]


def listed(items: Iterable[object], limit: int = 4) -> str:
    """List the first items, separated by commas, and give the number of the others, as in "a, b and 3 more".

    Args:
        items: The items.
        limit: The largest number of items to write out.
    """
    found = list(items)
    rest = len(found) - limit
    return ", ".join(printable(str(item)) for item in found[:limit]) + (f" and {rest} more" if rest > 0 else "")


def short(value: object, limit: int = 80) -> str:
    """Write a value that a file holds, cut off where it is long.

    Args:
        value: A number, a text or a container of them.
        limit: The largest number of characters.
    """
    text = printable(repr(value))
    return text if len(text) <= limit else f"{text[:limit]}..."
