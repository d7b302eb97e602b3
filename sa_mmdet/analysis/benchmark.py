"""Time and memory of attention, side by side: all arms in one run, taking turns, as ratios to the plain network."""

import contextlib
import ctypes
import functools
import gc
import multiprocessing
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from sa_mmdet.attention import SqueezeExcitation
from sa_mmdet.ops import shuffle_attention_residual

LEVELS = ("operator", "backbone", "detector")
PLAIN = "plain"
_COPY = "copy"
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of malloc.h
# Arms, and the backbone that each stands for.
ARMS: dict[str, dict[str, Any]] = {
    PLAIN: dict(type="ResNet"),
    "published": dict(type="AttentionResNet", attention=dict(type="PublishedShuffleAttention")),
    "reference": dict(type="SAResNet", implementation="reference"),
    "fused": dict(type="SAResNet", implementation="auto"),
    "se": dict(type="AttentionResNet", attention=dict(type="SqueezeExcitation")),
    "plain-compile": dict(type="ResNet"),
    "reference-compile": dict(type="SAResNet", implementation="reference"),
    "fused-compile": dict(type="SAResNet", implementation="auto"),
}
_DETECTOR = "mmdet::retinanet/retinanet_r50_fpn_1x_coco.py"
# Passes over a tensor of x's size that a tail cannot do without: the statistics, then x, identity and the output;
# gradient, output and x for the sums and the gradient of the identity, then that, x and the gradient of x.
PASSES = dict(inference=4, backward=7)
_STAGES = ((256, 4), (512, 8), (1024, 16), (2048, 32))  # channels and stride of ResNet-50's stages

Step = Callable[[], Any]


@ROOT_MODELS.register_module()
class PublishedShuffleAttention(nn.Module):
    """Shuffle attention as its paper writes it (equations 1-4): an operator a step, and a copy a rearrangement."""

    _abbr_ = "published"

    def __init__(self, in_channels: int, groups: int = 64):
        super().__init__()
        self.groups = groups
        self.weights = nn.ParameterList(torch.ones(in_channels // (2 * groups), 1, 1) for _ in range(2))
        self.biases = nn.ParameterList(torch.zeros(in_channels // (2 * groups), 1, 1) for _ in range(2))
        self.norm = nn.GroupNorm(in_channels // (2 * groups), in_channels // (2 * groups))

    def forward(self, x: Tensor) -> Tensor:
        """N x C x H x W to the same."""
        n, c, h, w = x.shape
        channel, spatial = x.reshape(n * self.groups, c // self.groups, h, w).chunk(2, dim=1)
        weights, biases = self.weights, self.biases
        channel = channel * torch.sigmoid(weights[0] * F.adaptive_avg_pool2d(channel, 1) + biases[0])
        spatial = spatial * torch.sigmoid(weights[1] * self.norm(spatial) + biases[1])
        gated = torch.cat([channel, spatial], dim=1).reshape(n, 2, c // 2, h, w)
        return gated.transpose(1, 2).reshape(n, c, h, w)


def benchmark(
    level: str,
    shape: tuple[int, int],
    batch: int,
    arms: list[str],
    repeats: int,
    device: str = "cpu",
    dtype: str = "float32",
    memory: bool = True,
) -> dict[str, Any]:
    """Measure forward and training step of all arms.

    Args:
        level: 'operator' (the tails of the four stages' blocks), 'backbone' (ResNet-50, frozen_stages=1,
            norm_eval=True) or 'detector' (RetinaNet on it).
        shape: Height and width of the image in pixels.
        batch: Images.
        arms: Of :data:`ARMS`; 'plain' is always measured.
        repeats: Turns of every arm, after one that is not counted.
        device: A device of PyTorch.
        dtype: 'float32', or 'float16' or 'bfloat16' for mixed precision.
        memory: Whether to measure peak memory too; on a CPU each arm then runs once more, in a process of its own.

    Returns:
        For each arm, 'inference' and 'training': minimum and median in milliseconds, quartiles, the ratios of minimum
        and median to the plain arm's, and median and quartiles of the ratios turn by turn, which a machine's changes
        of pace harm least; and 'memory', the peak of a training step in MiB above rest, with its ratio. For the
        operator also 'backward', and in both its directions the share of a copy's bandwidth, of the fewest bytes.

    Raises:
        ValueError: An unknown level, arm or dtype, or a number below 1.
    """
    _check(level, arms, repeats, batch, dtype)
    arms = [PLAIN, *(arm for arm in arms if arm != PLAIN)]
    results: dict[str, Any] = {arm: {} for arm in arms}
    if memory:
        peaks = {arm: _peak_memory(level, arm, shape, batch, device, dtype) for arm in arms}
        for arm, peak in peaks.items():
            results[arm]["memory"] = dict(peak_mib=peak / 2**20, ratio=peak / peaks[PLAIN])
    _keep_memory()
    modes = ("inference", "backward", "training") if level == "operator" else ("inference", "training")
    for mode in modes:
        steps = {arm: _step(level, arm, mode, shape, batch, device, dtype) for arm in arms}
        if level == "operator":
            steps[_COPY] = _copy_step(shape, batch, device, getattr(torch, dtype))
        times: dict[str, list[float]] = {arm: [] for arm in steps}
        for turn in range(repeats + 1):
            for arm, step in steps.items():
                elapsed = _timed(step, device)
                if turn:
                    times[arm].append(elapsed)
        del steps
        gc.collect()
        for arm in arms:
            results[arm][mode] = _figures(times[arm], times[PLAIN])
            if mode in PASSES and _COPY in times:
                # A copy reads and writes: two passes.
                results[arm][mode]["share_of_copy"] = PASSES[mode] / 2 * min(times[_COPY]) / min(times[arm])
    return results


def _keep_memory() -> None:
    """Have glibc keep what is freed, as the allocators that servers use do.

    By default it gives large blocks back to the kernel and takes them anew, page by page, or does not, as the blocks
    happened to lie: up to 100 ms of a training step of 900, in any arm.
    """
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL("libc.so.6")
        library.mallopt(_M_MMAP_MAX, 0)
        library.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def _figures(own: list[float], plain: list[float]) -> dict[str, Any]:
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


def _check(level: str, arms: list[str], repeats: int, batch: int, dtype: str) -> None:
    for name, value, choices in (("level", level, LEVELS), ("dtype", dtype, ("float32", "float16", "bfloat16"))):
        if value not in choices:
            raise ValueError(f"{name}={value!r} is unknown: choose one of {', '.join(choices)}")
    unknown = [arm for arm in arms if arm not in ARMS]
    if unknown:
        raise ValueError(f"unknown arms {', '.join(unknown)}: choose from {', '.join(ARMS)}")
    if repeats < 1 or batch < 1:
        raise ValueError(f"repeats={repeats} and batch={batch} must be 1 or more")


def _step(level: str, arm: str, mode: str, shape: tuple[int, int], batch: int, device: str, dtype: str) -> Step:
    """What is measured: a forward, or a forward and a backward."""
    torch.manual_seed(0)
    autocast = functools.partial(_autocast, device, getattr(torch, dtype))
    if level == "operator":
        return _operator_step(arm, mode, shape, batch, device, getattr(torch, dtype))
    backbone = dict(ARMS[arm], depth=50, frozen_stages=1, norm_eval=True)
    if level == "backbone":
        model = MODELS.build(backbone)
    else:
        cfg = Config.fromfile(Config._get_cfg_path(_DETECTOR, "")[0]).model
        with DefaultScope.overwrite_default_scope("mmdet"):  # in which the config names its layers
            model = MODELS.build({**cfg, "backbone": backbone})
    model.to(device)
    model.train(mode == "training")
    function = torch.compile(model) if arm.endswith("-compile") else model
    image = torch.randn(batch, 3, *shape, device=device)

    def forward() -> list[Tensor]:
        with autocast():
            return _tensors(function(image))

    def inference() -> None:
        with torch.no_grad():
            forward()

    def training() -> None:
        model.zero_grad()
        sum(out.float().mean() for out in forward()).backward()  # type: ignore[union-attr]

    return inference if mode == "inference" else training


def _tail_shapes(shape: tuple[int, int], batch: int) -> list[tuple[int, int, int, int]]:
    return [(batch, channels, max(1, shape[0] // stride), max(1, shape[1] // stride)) for channels, stride in _STAGES]


def _autocast(device: str, dtype: torch.dtype) -> AbstractContextManager:
    return nullcontext() if dtype == torch.float32 else torch.autocast(torch.device(device).type, dtype=dtype)


def _operator_step(arm: str, mode: str, shape: tuple[int, int], batch: int, device: str, dtype: torch.dtype) -> Step:
    """The tails of one block of each stage: batch norm in evaluation mode, attention, addition, ReLU."""
    tails: list[Any] = []
    for size in _tail_shapes(shape, batch):
        channels = size[1]
        x, identity, gradient = (torch.randn(size, device=device, dtype=dtype) for _ in range(3))
        norm = nn.BatchNorm2d(channels).eval().to(device)
        attention: Any = (SqueezeExcitation if arm == "se" else PublishedShuffleAttention)(channels).to(device)
        attention.sa_parameters = [torch.randn(channels // 128, device=device).requires_grad_() for _ in range(6)]
        tails.append((x.requires_grad_(), identity.requires_grad_(), gradient, norm, attention))

    residual: Any = shuffle_attention_residual

    def tail(x: Tensor, identity: Tensor, norm: Any, attention: Any) -> Tensor:
        if arm.startswith(PLAIN) or arm in ("se", "published"):
            # As under mixed precision, in which batch norm gives what it was given.
            y = F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias)
            if not arm.startswith(PLAIN):
                y = attention(y).to(x.dtype)
            return y.add_(identity).relu_()
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        shift = norm.bias - norm.running_mean * scale
        implementation = "reference" if arm.startswith("reference") else "auto"
        return residual(x, identity, scale, shift, *attention.sa_parameters, 64, implementation=implementation)

    function = torch.compile(tail) if arm.endswith("-compile") else tail

    def forward(x: Tensor, identity: Tensor, norm: Any, attention: Any) -> Tensor:
        with _autocast(device, dtype):
            return function(x, identity, norm, attention)

    def gradients(out: Tensor, x: Tensor, identity: Tensor, gradient: Tensor, norm: Any, keep: bool) -> None:
        torch.autograd.grad(out, [x, identity, *norm.parameters()], gradient, retain_graph=keep)

    def inference() -> None:
        with torch.no_grad():
            for x, identity, _, norm, attention in tails:
                forward(x, identity, norm, attention)

    def training() -> None:
        for x, identity, gradient, norm, attention in tails:
            gradients(forward(x, identity, norm, attention), x, identity, gradient, norm, False)

    if mode == "inference":
        return _replayed(inference, device)
    if mode == "training":
        return _replayed(training, device)
    outputs = [forward(x, identity, norm, attention) for x, identity, _, norm, attention in tails]

    def backward() -> None:
        for out, (x, identity, gradient, norm, _) in zip(outputs, tails, strict=True):
            gradients(out, x, identity, gradient, norm, True)

    return _replayed(backward, device)


def _copy_step(shape: tuple[int, int], batch: int, device: str, dtype: torch.dtype) -> Step:
    """Copies of tensors of the tails' sizes."""
    pairs = [[torch.zeros(size, device=device, dtype=dtype) for _ in range(2)] for size in _tail_shapes(shape, batch)]

    def copy() -> None:
        for source, target in pairs:
            target.copy_(source)

    return _replayed(copy, device)


def _replayed(step: Step, device: str) -> Step:
    """On a GPU, the step as a graph: the operator's kernels are shorter than the calls that launch them."""
    if not device.startswith("cuda"):
        return step
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):  # kernels compile and libraries start outside the capture
        for _ in range(3):
            step()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [tensor for inner in value for tensor in _tensors(inner)] if isinstance(value, list | tuple) else []


def _timed(step: Step, device: str) -> float:
    """Milliseconds."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    begin = time.perf_counter()
    step()
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return 1e3 * (time.perf_counter() - begin)


def _peak_memory(level: str, arm: str, shape: tuple[int, int], batch: int, device: str, dtype: str) -> float:
    """Bytes of a training step above rest."""
    if device.startswith("cuda"):
        step = _step(level, arm, "training", shape, batch, device, dtype)
        step()
        torch.cuda.synchronize(device)
        rest = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        return torch.cuda.max_memory_allocated(device) - rest
    # A process of its own: what another arm has freed would hide what this one takes.
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_resident_memory, (level, arm, shape, batch, dtype))


def _resident_memory(level: str, arm: str, shape: tuple[int, int], batch: int, dtype: str) -> float:
    import sa_mmdet  # noqa: F401  (registers, in the new process)

    step = _step(level, arm, "training", shape, batch, "cpu", dtype)
    rest = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    step()
    return _status("VmHWM") - rest


def _status(name: str) -> int:
    """Bytes, from Linux's account of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    [line] = [line for line in lines if line.startswith(f"{name}:")]
    return 1024 * int(line.split()[1])
