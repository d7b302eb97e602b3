"""Weights: reading and writing their files, converting, publishing."""

from .conversion import ATTENTIONS, Converted, convert, released
from .files import read, tensors_of, write

__all__ = ["ATTENTIONS", "Converted", "convert", "read", "released", "tensors_of", "write"]
