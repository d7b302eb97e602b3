"""Several processes without a GPU, which MMEngine (all versions so far) and PyTorch's SyncBatchNorm refuse."""

import functools
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from mmengine.device import get_device
from mmengine.dist import utils
from mmengine.model import MMDistributedDataParallel
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.modules.batchnorm import _BatchNorm


def launch_on_cpus() -> None:
    """Let ``--launcher pytorch``, ``slurm`` and ``mpi`` start processes on a machine without a GPU, over gloo.

    MMEngine binds each process to a GPU first, takes the config's backend, which is NCCL by default, and names a GPU to
    DistributedDataParallel.
    """
    for launcher in ("pytorch", "slurm", "mpi"):
        name = f"_init_dist_{launcher}"
        setattr(utils, name, _without_gpus(getattr(utils, name)))
    MMDistributedDataParallel.__init__ = _without_device_ids(MMDistributedDataParallel.__init__)


def _without_gpus(initialise: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(initialise)
    def wrapped(backend: str, **options: Any) -> None:
        if get_device() != "cpu":
            return initialise(backend, **options)
        with mock.patch.object(torch.cuda, "set_device"):
            return initialise("gloo" if backend == "nccl" else backend, **options)

    return wrapped


def _without_device_ids(initialise: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(initialise)
    def wrapped(self: Any, module: nn.Module, *arguments: Any, **options: Any) -> None:
        if all(parameter.device.type == "cpu" for parameter in module.parameters()):
            options.pop("device_ids", None)
        initialise(self, module, *arguments, **options)

    return wrapped


def synchronise_batch_norm_on_cpus() -> None:
    """Let SyncBatchNorm take tensors on CPUs, which PyTorch's (all versions so far) refuses.

    Only for what would be refused: in training, in a group of several processes. DistributedDataParallel refuses such
    a module too, in a check that does nothing else and is passed over here.
    """
    nn.SyncBatchNorm.forward = _also_on_cpus(nn.SyncBatchNorm.forward)  # type: ignore[method-assign, assignment]
    MMDistributedDataParallel._passing_sync_batchnorm_handle = lambda self, module: None


def _also_on_cpus(forward: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    @functools.wraps(forward)
    def wrapped(self: Any, x: Tensor) -> Tensor:
        statistics_of_batch = self.training or self.running_mean is None
        alone = not (dist.is_available() and dist.is_initialized()) or dist.get_world_size(self.process_group) == 1
        if x.device.type != "cpu":
            return forward(self, x)
        if not statistics_of_batch or alone:
            return _BatchNorm.forward(self, x)  # PyTorch before 2 refuses CPUs here, too
        return _normalise_over_all(self, x)

    return wrapped


def _normalise_over_all(norm: Any, x: Tensor) -> Tensor:
    """Batch norm by mean and variance over the batches of all processes, whose sizes may differ."""
    group = norm.process_group or dist.group.WORLD
    axes = [axis for axis in range(x.dim()) if axis != 1]
    shape = [1, -1, *[1] * (x.dim() - 2)]
    count = x.new_tensor([x.numel() / x.shape[1]])
    dist.all_reduce(count, group=group)
    # all_reduce of torch.distributed.nn passes gradients: each process's statistics depend on all batches.
    mean = all_reduce(x.sum(axes), group=group) / count
    centred = x - mean.view(shape)
    variance = all_reduce(centred.square().sum(axes), group=group) / count
    if norm.training and norm.track_running_stats:
        norm.num_batches_tracked.add_(1)
        momentum = 1 / norm.num_batches_tracked.item() if norm.momentum is None else norm.momentum
        with torch.no_grad():
            norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), momentum)
            norm.running_var.lerp_((variance * count / (count - 1)).to(norm.running_var.dtype), momentum)
    out = centred * torch.rsqrt(variance + norm.eps).view(shape)
    return out * norm.weight.view(shape) + norm.bias.view(shape) if norm.affine else out
