"""Warnings that other packages repeat and that a user can do nothing about."""

import contextlib
import logging
import warnings
from collections.abc import Iterator


def ignore_pkg_resources() -> None:
    """Ignore the deprecation of pkg_resources, which MMEngine (up to 0.10.7) imports and reloads for each config."""
    warnings.filterwarnings("ignore", "pkg_resources is deprecated as an API", UserWarning)


@contextlib.contextmanager
def quiet_exporter() -> Iterator[None]:
    """A context without the ONNX exporter's remarks on torchvision's operators and PyTorch's own deprecations."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logger.setLevel(level)
