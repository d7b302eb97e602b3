"""The C++ sources of the operators for CPUs, and the name of the library that they are compiled into."""

import re

import torch

SOURCES = ("pointwise.cpp", "pools.cpp", "shuffle_attention.cpp", "autograd.cpp")


def library_name() -> str:
    """The name of the library for this PyTorch: one that was compiled for another may crash, so it is never loaded."""
    return "_torch_" + re.sub(r"\W", "_", torch.__version__)
