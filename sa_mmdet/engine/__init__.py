"""Hooks for MMEngine's runner: checks, checkpoints and random seeds."""

from .check_dataset import CheckDataset
from .safe_checkpoint import SafeCheckpointHook
from .seed_epochs import SeedEpochs

__all__ = ["CheckDataset", "SafeCheckpointHook", "SeedEpochs"]
