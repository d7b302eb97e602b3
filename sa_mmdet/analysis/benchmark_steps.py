"""The steps that the benchmark measures: of an operator, a backbone or a detector, in several variants."""

import functools
import importlib.util
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn import fuse_conv_bn
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from sa_mmdet.attention import SqueezeExcitation
from sa_mmdet.deployment import export_onnx
from sa_mmdet.ops import shuffle_attention_residual
from sa_mmdet.registry import register

LEVELS = ("operator", "backbone", "detector")
DEPTHS = (50, 101)
PLAIN = "plain"
IN_ONNX_RUNTIME, COMPILED = "-onnxruntime", "-compile"
# For inference alone: the plain network and SA-Net with their batch norms folded into the convolutions, in PyTorch and
# in ONNX Runtime.
FOLDED = ("folded", "baked", "folded-onnxruntime", "baked-onnxruntime")
# The variants and their backbones.
VARIANTS: dict[str, dict[str, Any]] = {
    PLAIN: dict(type="ResNet"),
    "published": dict(
        type="AttentionResNet", attention=dict(type="PublishedShuffleAttention"), implementation="reference"
    ),
    "reference": dict(type="SAResNet", implementation="reference"),
    "fused": dict(type="SAResNet", implementation="auto"),
    "none": dict(type="AttentionResNet"),
    "se": dict(type="AttentionResNet", attention=dict(type="SqueezeExcitation")),
    "eca": dict(type="AttentionResNet", attention=dict(type="EfficientChannelAttention")),
    "sge": dict(type="AttentionResNet", attention=dict(type="SpatialGroupEnhance")),
    "cbam": dict(type="AttentionResNet", attention=dict(type="CBAM")),
    "folded": dict(type="ResNet"),
    "baked": dict(type="BakedSAResNet"),
    "folded-onnxruntime": dict(type="ResNet"),
    "baked-onnxruntime": dict(type="BakedSAResNet"),
    "plain-compile": dict(type="ResNet"),
    "reference-compile": dict(type="SAResNet", implementation="reference"),
    "fused-compile": dict(type="SAResNet", implementation="auto"),
}
_WITHOUT_TAILS = ("none", "eca", "sge", "cbam", *FOLDED)
_DETECTOR = "mmdet::retinanet/retinanet_r50_fpn_1x_coco.py"
_STAGES = ((256, 4), (512, 8), (1024, 16), (2048, 32))  # channels and stride of ResNet-50's stages

Step = Callable[[], Any]


@register(ROOT_MODELS)
class PublishedShuffleAttention(nn.Module):
    """Shuffle attention as its paper writes it: one operator per step, and a copy for each rearrangement of channels.

    Source: SA-Net, ICASSP 2021 (arXiv 2102.00240), equations 1 to 4.

    Args:
        in_channels: The number of channels C.
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
        """Compute the attention of x, N x C x H x W; the output has the same shape."""
        n, c, h, w = x.shape
        channel, spatial = x.reshape(n * self.groups, c // self.groups, h, w).chunk(2, dim=1)
        weights, biases = self.weights, self.biases
        channel = channel * torch.sigmoid(weights[0] * F.adaptive_avg_pool2d(channel, 1) + biases[0])
        spatial = spatial * torch.sigmoid(weights[1] * self.norm(spatial) + biases[1])
        gated = torch.cat([channel, spatial], dim=1).reshape(n, 2, c // 2, h, w)
        return gated.transpose(1, 2).reshape(n, c, h, w)


def make_step(
    level: str, variant: str, mode: str, shape: tuple[int, int], batch: int, device: str, dtype: str, depth: int = 50
) -> Step:
    """Make a function to measure, which runs one forward pass, one backward pass, or both.

    Args:
        level: 'operator', 'backbone' or 'detector'.
        variant: One of :data:`VARIANTS`.
        mode: 'inference', 'training', or, for the operator only, 'backward'.
        shape: Height and width of the image in pixels.
        batch: The number of images.
        device: A device of PyTorch.
        dtype: 'float32', or 'float16' or 'bfloat16' for mixed precision.
        depth: The depth of the ResNet.

    Raises:
        ValueError: The level does not have the variant, or ONNX Runtime is missing.
    """
    torch.manual_seed(0)
    autocast = functools.partial(_autocast, device, getattr(torch, dtype))
    if level == "operator":
        return _replayed(_Tails(variant, shape, batch, device, getattr(torch, dtype)).step(mode), device)
    backbone = dict(VARIANTS[variant], depth=depth, frozen_stages=1, norm_eval=True)
    if level == "backbone":
        model = MODELS.build(backbone)
    else:
        cfg = Config.fromfile(Config._get_cfg_path(_DETECTOR, "")[0]).model
        with DefaultScope.overwrite_default_scope("mmdet"):  # the scope in which the config names its layers
            model = MODELS.build({**cfg, "backbone": backbone})
    model.to(device)
    model.train(mode == "training")
    if variant.startswith("folded"):
        fuse_conv_bn(model)
    if variant.endswith(IN_ONNX_RUNTIME):
        return _in_onnx_runtime(model, shape, batch)
    function = torch.compile(model) if variant.endswith(COMPILED) else model
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


def _in_onnx_runtime(model: Any, shape: tuple[int, int], batch: int) -> Step:
    """A forward pass on the CPU in ONNX Runtime, with as many threads as PyTorch has."""
    if importlib.util.find_spec("onnxruntime") is None:
        raise ValueError("variants in ONNX Runtime need it: pip install onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # it would slow the other variants' turns
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        export_onnx(model, path)
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return functools.partial(session.run, None, {"image": torch.randn(batch, 3, *shape).numpy()})


def _tail_shapes(shape: tuple[int, int], batch: int) -> list[tuple[int, int, int, int]]:
    return [(batch, channels, max(1, shape[0] // stride), max(1, shape[1] // stride)) for channels, stride in _STAGES]


def _autocast(device: str, dtype: torch.dtype) -> AbstractContextManager:
    return nullcontext() if dtype == torch.float32 else torch.autocast(torch.device(device).type, dtype=dtype)


class _Tails:
    """The ends of one block per stage: batch norm in evaluation mode, attention, addition of the identity, ReLU."""

    def __init__(self, variant: str, shape: tuple[int, int], batch: int, device: str, dtype: torch.dtype):
        self.variant, self.device, self.dtype = variant, device, dtype
        self.tails: list[Any] = []
        for size in _tail_shapes(shape, batch):
            channels = size[1]
            x, identity, gradient = (torch.randn(size, device=device, dtype=dtype) for _ in range(3))
            norm = nn.BatchNorm2d(channels).eval().to(device)
            attention: Any = (SqueezeExcitation if variant == "se" else PublishedShuffleAttention)(channels).to(device)
            attention.sa_parameters = [torch.randn(channels // 128, device=device).requires_grad_() for _ in range(6)]
            self.tails.append((x.requires_grad_(), identity.requires_grad_(), gradient, norm, attention))
        if variant in _WITHOUT_TAILS:
            raise ValueError(f"the operator's level has no variant {variant!r}: choose the level backbone or detector")
        separate = variant.startswith(PLAIN) or variant in ("se", "published")
        tail = self._separate if separate else self._fused
        self.function: Any = torch.compile(tail) if variant.endswith(COMPILED) else tail

    def step(self, mode: str) -> Step:
        """The function to measure for 'inference', 'training' or 'backward'."""
        if mode == "backward":
            outputs = [self._forward(x, identity, norm, attention) for x, identity, _, norm, attention in self.tails]
            return functools.partial(self._backward, outputs)
        return dict(inference=self._inference, training=self._training)[mode]

    def _separate(self, x: Tensor, identity: Tensor, norm: Any, attention: Any) -> Tensor:
        # As under mixed precision, where batch norm returns the dtype of its input.
        y = F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias)
        if not self.variant.startswith(PLAIN):
            y = attention(y).to(x.dtype)
        return y.add_(identity).relu_()

    def _fused(self, x: Tensor, identity: Tensor, norm: Any, attention: Any) -> Tensor:
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        shift = norm.bias - norm.running_mean * scale
        implementation = "reference" if self.variant.startswith("reference") else "auto"
        operator: Any = shuffle_attention_residual
        return operator(x, identity, scale, shift, *attention.sa_parameters, 64, implementation=implementation)

    def _forward(self, x: Tensor, identity: Tensor, norm: Any, attention: Any) -> Tensor:
        with _autocast(self.device, self.dtype):
            return self.function(x, identity, norm, attention)

    def _inference(self) -> None:
        with torch.no_grad():
            for x, identity, _, norm, attention in self.tails:
                self._forward(x, identity, norm, attention)

    def _training(self) -> None:
        for x, identity, gradient, norm, attention in self.tails:
            output = self._forward(x, identity, norm, attention)
            torch.autograd.grad(output, [x, identity, *norm.parameters()], gradient)

    def _backward(self, outputs: list[Tensor]) -> None:
        for output, (x, identity, gradient, norm, _) in zip(outputs, self.tails, strict=True):
            torch.autograd.grad(output, [x, identity, *norm.parameters()], gradient, retain_graph=True)


def copy_step(shape: tuple[int, int], batch: int, device: str, dtype: torch.dtype) -> Step:
    """Make a function that copies tensors with the sizes of the inputs of one block's end per stage."""
    pairs = [[torch.zeros(size, device=device, dtype=dtype) for _ in range(2)] for size in _tail_shapes(shape, batch)]

    def copy() -> None:
        for source, target in pairs:
            target.copy_(source)

    return _replayed(copy, device)


def _replayed(step: Step, device: str) -> Step:
    """On a GPU, capture the step as a CUDA graph: launching the operator's kernels takes longer than running them."""
    if not device.startswith("cuda"):
        return step
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):  # kernels are compiled and libraries initialised before the capture
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
