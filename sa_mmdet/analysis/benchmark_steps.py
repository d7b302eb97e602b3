"""What the benchmark measures: steps of an operator, a backbone or a detector, in several variants."""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
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
# The variants, and the backbone that each stands for.
VARIANTS: dict[str, dict[str, Any]] = {
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
_STAGES = ((256, 4), (512, 8), (1024, 16), (2048, 32))  # channels and stride of ResNet-50's stages

Step = Callable[[], Any]


@ROOT_MODELS.register_module()
class PublishedShuffleAttention(nn.Module):
    """Shuffle attention as its paper writes it (equations 1-4): one operator per step, one copy per rearrangement.

    Args:
        in_channels: C.
        groups: The number of groups of channels.
    """

    _abbr_ = "published"

    def __init__(self, in_channels: int, groups: int = 64):
        super().__init__()
        self.groups = groups
        self.weights = nn.ParameterList(torch.ones(in_channels // (2 * groups), 1, 1) for _ in range(2))
        self.biases = nn.ParameterList(torch.zeros(in_channels // (2 * groups), 1, 1) for _ in range(2))
        self.norm = nn.GroupNorm(in_channels // (2 * groups), in_channels // (2 * groups))

    def forward(self, x: Tensor) -> Tensor:
        """Compute the attention, N x C x H x W in and out."""
        n, c, h, w = x.shape
        channel, spatial = x.reshape(n * self.groups, c // self.groups, h, w).chunk(2, dim=1)
        weights, biases = self.weights, self.biases
        channel = channel * torch.sigmoid(weights[0] * F.adaptive_avg_pool2d(channel, 1) + biases[0])
        spatial = spatial * torch.sigmoid(weights[1] * self.norm(spatial) + biases[1])
        gated = torch.cat([channel, spatial], dim=1).reshape(n, 2, c // 2, h, w)
        return gated.transpose(1, 2).reshape(n, c, h, w)


def make_step(level: str, variant: str, mode: str, shape: tuple[int, int], batch: int, device: str, dtype: str) -> Step:
    """Make what is measured: a function that runs one forward, or a forward and a backward.

    Args:
        level: 'operator', 'backbone' or 'detector'.
        variant: One of :data:`VARIANTS`.
        mode: 'inference', 'training', or for the operator 'backward'.
        shape: Height and width of the image in pixels.
        batch: The number of images.
        device: A device of PyTorch.
        dtype: 'float32', or 'float16' or 'bfloat16' for mixed precision.
    """
    torch.manual_seed(0)
    autocast = functools.partial(_autocast, device, getattr(torch, dtype))
    if level == "operator":
        return _operator_step(variant, mode, shape, batch, device, getattr(torch, dtype))
    backbone = dict(VARIANTS[variant], depth=50, frozen_stages=1, norm_eval=True)
    if level == "backbone":
        model = MODELS.build(backbone)
    else:
        cfg = Config.fromfile(Config._get_cfg_path(_DETECTOR, "")[0]).model
        with DefaultScope.overwrite_default_scope("mmdet"):  # the scope in which the config names its layers
            model = MODELS.build({**cfg, "backbone": backbone})
    model.to(device)
    model.train(mode == "training")
    function = torch.compile(model) if variant.endswith("-compile") else model
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


def _operator_step(
    variant: str, mode: str, shape: tuple[int, int], batch: int, device: str, dtype: torch.dtype
) -> Step:
    """The tails of one block per stage: batch norm in evaluation mode, attention, addition, ReLU."""
    tails: list[Any] = []
    for size in _tail_shapes(shape, batch):
        channels = size[1]
        x, identity, gradient = (torch.randn(size, device=device, dtype=dtype) for _ in range(3))
        norm = nn.BatchNorm2d(channels).eval().to(device)
        attention: Any = (SqueezeExcitation if variant == "se" else PublishedShuffleAttention)(channels).to(device)
        attention.sa_parameters = [torch.randn(channels // 128, device=device).requires_grad_() for _ in range(6)]
        tails.append((x.requires_grad_(), identity.requires_grad_(), gradient, norm, attention))

    residual: Any = shuffle_attention_residual

    def tail(x: Tensor, identity: Tensor, norm: Any, attention: Any) -> Tensor:
        if variant.startswith(PLAIN) or variant in ("se", "published"):
            # As under mixed precision, where batch norm returns the dtype that it was given.
            y = F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias)
            if not variant.startswith(PLAIN):
                y = attention(y).to(x.dtype)
            return y.add_(identity).relu_()
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        shift = norm.bias - norm.running_mean * scale
        implementation = "reference" if variant.startswith("reference") else "auto"
        return residual(x, identity, scale, shift, *attention.sa_parameters, 64, implementation=implementation)

    function = torch.compile(tail) if variant.endswith("-compile") else tail

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


def copy_step(shape: tuple[int, int], batch: int, device: str, dtype: torch.dtype) -> Step:
    """Make a function that copies tensors of the sizes of the blocks' tails."""
    pairs = [[torch.zeros(size, device=device, dtype=dtype) for _ in range(2)] for size in _tail_shapes(shape, batch)]

    def copy() -> None:
        for source, target in pairs:
            target.copy_(source)

    return _replayed(copy, device)


def _replayed(step: Step, device: str) -> Step:
    """On a GPU, the step as a CUDA graph: launching the operator's kernels takes longer than running them."""
    if not device.startswith("cuda"):
        return step
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):  # kernels are compiled and libraries start outside the capture
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
