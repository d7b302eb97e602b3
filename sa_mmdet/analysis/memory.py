"""The peak memory of a training step."""

import contextlib
import ctypes
import multiprocessing
from collections.abc import Mapping
from pathlib import Path

import torch

from .benchmark_steps import make_step

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4  # of malloc.h
_LARGE = 65_536  # bytes; what is smaller is next to nothing in a training step


def keep_freed_memory() -> None:
    """Make glibc keep freed memory, as the allocators that servers use do.

    By default it returns large blocks to the kernel and requests them again page by page, depending on their addresses.
    This takes up to 100 ms of a training step of 900 ms, at random in any variant.
    """
    _tell_malloc({_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: 2**31 - 1})


def _return_freed_memory() -> None:
    """Make glibc return large blocks to the kernel when they are freed, so that a process has what is in use.

    By default it keeps more and more of them, and what is free between two blocks counts: by this the peaks of two
    processes that do the same differ by a tenth and more.
    """
    _tell_malloc({_M_MMAP_THRESHOLD: _LARGE})


def _tell_malloc(options: Mapping[int, int]) -> None:
    with contextlib.suppress(OSError, AttributeError):  # of a system without glibc
        library = ctypes.CDLL("libc.so.6")
        for option, value in options.items():
            library.mallopt(option, value)


def peak_memory(
    level: str, variant: str, shape: tuple[int, int], batch: int, device: str, dtype: str, depth: int = 50
) -> float:
    """Measure the peak memory of a training step, in bytes above the memory in use before it.

    Args:
        level: 'operator', 'backbone' or 'detector'.
        variant: One of :data:`sa_mmdet.analysis.benchmark_steps.VARIANTS`.
        shape: Height and width of the image in pixels.
        batch: The number of images.
        device: A device of PyTorch.
        dtype: 'float32', or 'float16' or 'bfloat16' for mixed precision.
        depth: The depth of the ResNet.
    """
    if device.startswith("cuda"):
        step = make_step(level, variant, "training", shape, batch, device, dtype, depth)
        step()
        torch.cuda.synchronize(device)
        rest = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        return torch.cuda.max_memory_allocated(device) - rest
    # In a new process, since memory that another variant has freed would not count.
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_resident_memory, (level, variant, shape, batch, dtype, depth))


def _resident_memory(level: str, variant: str, shape: tuple[int, int], batch: int, dtype: str, depth: int) -> float:
    import sa_mmdet  # noqa: F401  (registers the models in the new process)

    _return_freed_memory()
    step = make_step(level, variant, "training", shape, batch, "cpu", dtype, depth)
    rest = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    step()
    return _status("VmHWM") - rest


def _status(name: str) -> int:
    """A field of Linux's status of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    [line] = [line for line in lines if line.startswith(f"{name}:")]
    return 1024 * int(line.split()[1])
