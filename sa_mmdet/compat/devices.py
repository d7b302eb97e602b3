"""Devices, as contexts in which modules are built."""

from contextlib import AbstractContextManager, nullcontext

import torch


def shapes_alone() -> AbstractContextManager:
    """While it is entered new parameters have shapes and no memory; before torch 2.0, which cannot, they have both."""
    return torch.device("meta") if hasattr(torch.device, "__enter__") else nullcontext()
