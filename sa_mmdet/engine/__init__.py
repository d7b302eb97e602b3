"""Hooks for MMEngine's runner."""

from .check_dataset import CheckDataset

__all__ = ["CheckDataset"]
