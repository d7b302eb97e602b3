"""Weights: reading and writing their files, converting them, publishing them."""

from sa_mmdet.compat.downloads import digest

from .conversion import Converted, convert, convert_tensors, released
from .files import read, tensors_of, write
from .publishing import NAMINGS, PARTS, publish
from .recognition import known_attention

__all__ = [
    "NAMINGS",
    "PARTS",
    "Converted",
    "convert",
    "convert_tensors",
    "digest",
    "known_attention",
    "publish",
    "read",
    "released",
    "tensors_of",
    "write",
]
