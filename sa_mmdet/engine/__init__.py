"""What this package adds to MMEngine's runner: checks of the data, safe checkpoints, exact resumes, random seeds."""

from .check_dataset import CheckDataset
from .exact_resume import ExactResume
from .runners import REPAIRS
from .seed_steps import SeedSteps

__all__ = ["REPAIRS", "CheckDataset", "ExactResume", "SeedSteps"]
