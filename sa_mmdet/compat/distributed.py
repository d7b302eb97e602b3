"""Repairs for several processes on CPUs, which MMEngine and PyTorch's SyncBatchNorm (all versions so far) refuse."""

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


def launch_on_cpus(before: Callable[[], None]) -> None:
    """Let ``--launcher pytorch``, ``slurm`` and ``mpi`` start processes on a machine without a GPU, over gloo.

    MMEngine binds each process to a GPU first, and takes the config's backend, which is NCCL by default. With a GPU
    nothing is different.

    Args:
        before: Called when a launcher starts without a GPU, ahead of it.
    """

    def on_cpus_too(initialise: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(initialise)
        def wrapped(backend: str, **options: Any) -> None:
            if get_device() != "cpu":
                return initialise(backend, **options)
            before()
            with mock.patch.object(torch.cuda, "set_device"):
                return initialise("gloo" if backend == "nccl" else backend, **options)

        return wrapped

    for launcher in ("pytorch", "slurm", "mpi"):
        name = f"_init_dist_{launcher}"
        setattr(utils, name, on_cpus_too(getattr(utils, name)))


def wrap_models_on_cpus() -> None:
    """Let DistributedDataParallel take models on CPUs, for which MMEngine names a GPU to it."""
    original = MMDistributedDataParallel.__init__

    @functools.wraps(original)
    def initialise(self: Any, module: nn.Module, *arguments: Any, **options: Any) -> None:
        if all(parameter.device.type == "cpu" for parameter in module.parameters()):
            options.pop("device_ids", None)
        original(self, module, *arguments, **options)

    MMDistributedDataParallel.__init__ = initialise


def synchronise_batch_norm_on_cpus() -> None:
    """Let SyncBatchNorm take tensors on CPUs, which PyTorch's refuses.

    Only what would be refused is computed here: in training, in a group of several processes. DistributedDataParallel
    refuses such a module too, in a check that does nothing else and is left out here.
    """
    original = nn.SyncBatchNorm.forward

    @functools.wraps(original)
    def forward(self: Any, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            return original(self, x)
        uses_batch = self.training or self.running_mean is None
        alone = not (dist.is_available() and dist.is_initialized()) or dist.get_world_size(self.process_group) == 1
        if not uses_batch or alone:
            return _BatchNorm.forward(self, x)
        return _normalise_over_processes(self, x)

    nn.SyncBatchNorm.forward = forward  # type: ignore[method-assign, assignment]
    MMDistributedDataParallel._passing_sync_batchnorm_handle = lambda self, module: None


def _normalise_over_processes(norm: Any, x: Tensor) -> Tensor:
    """Batch norm by mean and variance over the batches of all processes, whose sizes may differ.

    As PyTorch's batch norm does, it computes in float32 or float64, and returns the dtype of ``x``. A sum over the
    positions overflows float16, and so does their number.
    """
    group = norm.process_group or dist.group.WORLD
    axes = [axis for axis in range(x.dim()) if axis != 1]
    shape = [1, -1, *[1] * (x.dim() - 2)]
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    count = wide.new_tensor([x.numel() / x.shape[1]])
    dist.all_reduce(count, group=group)
    # all_reduce of torch.distributed.nn passes gradients: each process's statistics depend on all batches.
    mean = all_reduce(wide.sum(axes), group=group) / count
    centred = wide - mean.view(shape)
    variance = all_reduce(centred.square().sum(axes), group=group) / count
    if norm.training and norm.track_running_stats:
        norm.num_batches_tracked.add_(1)
        momentum = 1 / norm.num_batches_tracked.item() if norm.momentum is None else norm.momentum
        with torch.no_grad():
            for running, found in ((norm.running_mean, mean), (norm.running_var, variance * count / (count - 1))):
                running.copy_(running.to(wide.dtype).lerp(found, momentum))
    out = centred * torch.rsqrt(variance + norm.eps).view(shape)
    if norm.affine:
        out = out * norm.weight.to(wide.dtype).view(shape) + norm.bias.to(wide.dtype).view(shape)
    return out.to(x.dtype)
