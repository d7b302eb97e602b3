"""All that only PyTorch before 2.6 needs. Once it is not supported any more, delete this module and what calls it."""

from contextlib import AbstractContextManager, nullcontext

import torch
from mmengine.utils import digit_version
from torch import Tensor

# Whether SyncBatchNorm refuses CPUs even in a single process.
SYNC_BATCH_NORM_NEEDS_GPU = digit_version(torch.__version__) < digit_version("2.0.0")


def shapes_only() -> AbstractContextManager:
    """A context in which new parameters have a shape and take no memory; before PyTorch 2.0 they do take memory."""
    return torch.device("meta") if hasattr(torch.device, "__enter__") else nullcontext()


def stored_numbers(tensor: Tensor) -> int:
    """The number of elements in a tensor's storage; PyTorch before 2.0 has no ``untyped_storage``."""
    return getattr(tensor, "untyped_storage", tensor.storage)().nbytes() // tensor.element_size()
