"""Data that the demo and the tests make for themselves."""

from .shapes import make_shapes

__all__ = ["make_shapes"]
