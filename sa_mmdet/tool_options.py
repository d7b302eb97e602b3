"""Options that several command-line tools share."""

import argparse
from collections import Counter
from collections.abc import Callable, Sequence


def at_least(smallest: int) -> Callable[[str], int]:
    """Make a type for argparse: integers that are not below a limit.

    Args:
        smallest: The limit.
    """

    def integer(text: str) -> int:
        value = int(text)
        if value < smallest:
            raise argparse.ArgumentTypeError(f"{value} must be at least {smallest}")
        return value

    return integer


def probability(text: str) -> float:
    """A type for argparse: numbers between 0 and 1, both excluded."""
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} must be between 0 and 1")
    return value


def add_device(parser: argparse.ArgumentParser, default: str = "cpu", described: str = "%(default)s") -> None:
    """Add the option --device.

    Args:
        parser: The tool's parser.
        default: The default, a device of PyTorch.
        described: How the help describes the default.
    """
    parser.add_argument("--device", default=default, help=f"a device of PyTorch (default: {described})")


def add_resamples(parser: argparse.ArgumentParser) -> None:
    """Add the option --resamples, the number of the bootstrap's resamples."""
    text = "number of resamples of the images for the bootstrap (default: %(default)s)"
    parser.add_argument("--resamples", type=at_least(1), default=1000, help=text)


def add_level(parser: argparse.ArgumentParser) -> None:
    """Add the option --level, the confidence level of the intervals."""
    text = "confidence level of the intervals, 0 to 1 (default: %(default)s)"
    parser.add_argument("--level", type=probability, default=0.95, help=text)


def add_plan(parser: argparse.ArgumentParser) -> None:
    """Add the option --plan, for the runs and images that it takes to show a difference."""
    text = "say how many runs or images show a difference of so many points of AP, such as 0.5 (default: do not say it)"
    parser.add_argument("--plan", type=positive, metavar="POINTS", help=text)


def positive(text: str) -> float:
    """A type for argparse: numbers above 0 and up to 100.

    Raises:
        argparse.ArgumentTypeError: It is out of this range.
    """
    value = float(text)
    if not 0 < value <= 100:
        raise argparse.ArgumentTypeError(f"{text} must be above 0 and at most 100")
    return value


def check_names(names: Sequence[str]) -> None:
    """Check that the networks that a tool is given have different names.

    Raises:
        ValueError: Two have the same one.
    """
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise ValueError(f"several networks have the name {repeated[0]!r}: give others with --name and --variant")


def seed(text: str) -> int:
    """A type for argparse: random seeds that numpy and PyTorch both accept.

    Raises:
        argparse.ArgumentTypeError: It is not an integer from 0 to 2**32 - 1.
    """
    try:
        value = int(text)
    except ValueError:
        value = -1
    if not 0 <= value < 2**32:
        raise argparse.ArgumentTypeError(f"{text[:80]!r}: give an integer from 0 to {2**32 - 1}")
    return value
