"""Options that several command-line tools share."""

import argparse


def add_device(parser: argparse.ArgumentParser, default: str = "cpu", described: str = "%(default)s") -> None:
    """Add --device.

    Args:
        parser: The tool's parser.
        default: A device of PyTorch.
        described: What the help says about the default.
    """
    parser.add_argument("--device", default=default, help=f"a device of PyTorch (default: {described})")


def add_resamples(parser: argparse.ArgumentParser) -> None:
    """Add --resamples, of the bootstrap."""
    text = "how many times the bootstrap draws the images anew (default: %(default)s)"
    parser.add_argument("--resamples", type=int, default=1000, help=text)


def add_level(parser: argparse.ArgumentParser) -> None:
    """Add --level, of the bootstrap's intervals."""
    text = "confidence level of the intervals, 0 to 1 (default: %(default)s)"
    parser.add_argument("--level", type=float, default=0.95, help=text)


def seed(text: str) -> int:
    """A seed from the command line: an integer that numpy and PyTorch both take.

    Raises:
        argparse.ArgumentTypeError: It is something else.
    """
    try:
        value = int(text)
    except ValueError:
        value = -1
    if not 0 <= value < 2**32:
        raise argparse.ArgumentTypeError(f"{text[:80]!r}: give an integer from 0 to {2**32 - 1}")
    return value
