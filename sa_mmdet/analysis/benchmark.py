"""Time and memory of attention: all variants take turns in one run, and are compared with the plain network."""

import gc
import statistics
import time
from typing import Any

import torch

from .benchmark_operators import operator_statistics
from .benchmark_steps import DEPTHS, FOLDED, IN_ONNX_RUNTIME, LEVELS, PLAIN, VARIANTS, Step, copy_step, make_step
from .memory import keep_freed_memory, peak_memory

# The smallest number of times that a tensor of x's size is read or written. Inference: x for the statistics, then x,
# identity and output. Backward: gradient, output and x for the sums and the gradient of the identity; then that
# gradient, x and the gradient of x.
PASSES = dict(inference=4, backward=7)
_COPY = "copy"


def benchmark(
    level: str,
    shape: tuple[int, int],
    batch: int,
    variants: list[str],
    repeats: int,
    device: str = "cpu",
    dtype: str = "float32",
    memory: bool = True,
    depth: int = 50,
    operators: bool = False,
) -> dict[str, Any]:
    """Measure inference and training step of all variants.

    Args:
        level: 'operator' (the tails of the four stages' blocks), 'backbone' (ResNet, frozen_stages=1, norm_eval=True)
            or 'detector' (RetinaNet with it).
        shape: Height and width of the image in pixels.
        batch: The number of images.
        variants: The variants, of :data:`VARIANTS`; 'plain' is always measured.
        repeats: The number of turns of each variant, after a first one that does not count.
        device: A device of PyTorch.
        dtype: 'float32', or 'float16' or 'bfloat16' for mixed precision.
        memory: Whether to measure peak memory too. On a CPU each variant then runs once more in its own process.
        depth: The depth of the ResNet, of :data:`DEPTHS`.
        operators: Whether to run as many turns under PyTorch's profiler, on a CPU.

    Returns:
        For each variant a dictionary; that of the variants with folded batch norms has 'inference' alone. 'inference'
        and 'training', and for the operator 'backward', contain:

        - 'min_ms', 'median_ms', 'quartiles_ms': times in milliseconds;
        - 'ratio_min', 'ratio_median': the ratios of minimum and median to those of the plain variant;
        - 'ratio_paired', 'ratio_paired_quartiles': median and quartiles of the ratios to the plain variant's time in
          the same turn, which are affected least by changes in the machine's speed;
        - 'share_of_copy', for the operator's 'inference' and 'backward': the achieved share of the bandwidth of a copy,
          if the operator reads and writes the smallest possible number of bytes;
        - with ``operators`` what :func:`.benchmark_operators.operator_statistics` returns.

        'memory' contains 'peak_mib', the peak of a training step in MiB above the memory in use before it, and its
        'ratio' to the plain variant's.

    Raises:
        ValueError: The level, a variant, the dtype or the depth is unknown, a number is below 1, or operators are to be
            measured on another device than a CPU.
    """
    _check_options(level, variants, repeats, batch, device, dtype, depth, operators)
    variants = [PLAIN, *(variant for variant in variants if variant != PLAIN)]
    results: dict[str, Any] = {variant: {} for variant in variants}
    if memory:
        trained = [variant for variant in variants if variant not in FOLDED]
        peaks = {variant: peak_memory(level, variant, shape, batch, device, dtype, depth) for variant in trained}
        for variant, peak in peaks.items():
            results[variant]["memory"] = dict(peak_mib=peak / 2**20, ratio=peak / peaks[PLAIN])
    keep_freed_memory()
    modes = ("inference", "backward", "training") if level == "operator" else ("inference", "training")
    for mode in modes:
        measured = [variant for variant in variants if mode == "inference" or variant not in FOLDED]
        steps = {variant: make_step(level, variant, mode, shape, batch, device, dtype, depth) for variant in measured}
        if level == "operator":
            steps[_COPY] = copy_step(shape, batch, device, getattr(torch, dtype))
        times = _take_turns(steps, repeats, device)
        profiled = operator_statistics({name: steps[name] for name in measured}, repeats) if operators else {}
        del steps
        gc.collect()
        for variant in measured:
            results[variant][mode] = _statistics(times[variant], times[PLAIN]) | profiled.get(variant, {})
            if mode in PASSES and _COPY in times:
                # A copy reads and writes its tensor once each.
                results[variant][mode]["share_of_copy"] = PASSES[mode] / 2 * min(times[_COPY]) / min(times[variant])
    return results


def _take_turns(steps: dict[str, Step], repeats: int, device: str) -> dict[str, list[float]]:
    """Run all steps in turn, and measure each turn except the first in milliseconds."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(repeats + 1):
        for name, step in steps.items():
            elapsed = _timed(step, device)
            if turn:
                times[name].append(elapsed)
    return times


def _statistics(own: list[float], plain: list[float]) -> dict[str, Any]:
    paired = [one / other for one, other in zip(own, plain, strict=True)]

    def quartiles(values: list[float]) -> tuple[float, float, float]:
        low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
        return low, middle, high

    low, median, high = quartiles(own)
    ratio_low, ratio, ratio_high = quartiles(paired)
    return dict(
        min_ms=min(own),
        median_ms=median,
        quartiles_ms=[low, high],
        ratio_min=min(own) / min(plain),
        ratio_median=median / statistics.median(plain),
        ratio_paired=ratio,
        ratio_paired_quartiles=[ratio_low, ratio_high],
    )


def _check_options(
    level: str, variants: list[str], repeats: int, batch: int, device: str, dtype: str, depth: int, operators: bool
) -> None:
    choices: dict[str, tuple[Any, tuple]] = dict(
        level=(level, LEVELS), dtype=(dtype, ("float32", "float16", "bfloat16")), depth=(depth, DEPTHS)
    )
    for name, (value, known) in choices.items():
        if value not in known:
            raise ValueError(f"{name}={value!r} is unknown: choose one of {', '.join(map(str, known))}")
    unknown = [variant for variant in variants if variant not in VARIANTS]
    if unknown:
        raise ValueError(f"unknown variants {', '.join(unknown)}: choose from {', '.join(VARIANTS)}")
    for variant in variants:
        if variant.endswith(IN_ONNX_RUNTIME) and (level, device, dtype) != ("backbone", "cpu", "float32"):
            raise ValueError(
                f"{variant!r} is measured for a backbone on the CPU in float32 alone, not for level {level} on "
                f"{device} in {dtype}: leave it out"
            )
    if repeats < 1 or batch < 1:
        raise ValueError(f"repeats={repeats} and batch={batch} must be at least 1")
    if operators and device != "cpu":
        raise ValueError(f"operators are measured on a CPU, not on {device}: there they run after the calls have ended")


def _timed(step: Step, device: str) -> float:
    """Run a step and return its time in milliseconds."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    begin = time.perf_counter()
    step()
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return 1e3 * (time.perf_counter() - begin)
