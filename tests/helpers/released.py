"""Random weights with the names that the modules' authors use, and the outputs of the authors' networks.

Written from the modules' definitions with PyTorch's functions only; shares no code with MMDetection or the package.
"""

import torch
import torch.nn.functional as F
from reference import (
    bam,
    cbam,
    efficient_channel_attention,
    shuffle_attention,
    spatial_group_enhance,
    squeeze_excitation,
)
from torch import Tensor

State = dict[str, Tensor]
BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
ECA_KERNELS = {50: (3, 5, 5, 7), 101: (3, 3, 5, 7)}
KINDS = ("none", "sa", "se", "se-bias", "eca", "sge", "cbam", "bam")


def _norm(state: State, name: str, channels: int) -> None:
    for field in ("weight", "bias", "running_mean"):
        state[f"{name}.{field}"] = 0.2 * torch.randn(channels) + (field == "weight")
    state[f"{name}.running_var"] = torch.rand(channels) + 0.5
    state[f"{name}.num_batches_tracked"] = torch.tensor(7)


def _layer(state: State, name: str, *shape: int, bias: bool = False) -> None:
    fan_in = torch.Size(shape[1:]).numel()
    state[f"{name}.weight"] = torch.randn(shape) * (2 / fan_in) ** 0.5
    if bias:
        state[f"{name}.bias"] = 0.1 * torch.randn(shape[0])


def _attention(state: State, kind: str, name: str, channels: int, kernel: int) -> None:
    hidden = channels // 16
    if kind == "sa":
        for field in ("cweight", "cbias", "sweight", "sbias"):
            state[f"{name}sa.{field}"] = torch.randn(1, channels // 128, 1, 1)
        for field in ("weight", "bias"):
            state[f"{name}sa.gn.{field}"] = torch.randn(channels // 128)
    elif kind.startswith("se"):
        _layer(state, f"{name}se.fc.0", hidden, channels, bias=kind == "se-bias")
        _layer(state, f"{name}se.fc.2", channels, hidden, bias=kind == "se-bias")
    elif kind == "eca":
        state[f"{name}eca.conv.weight"] = torch.randn(1, 1, kernel)
    elif kind == "sge":
        state.update({f"{name}sge.{field}": torch.randn(1, 64, 1, 1) for field in ("weight", "bias")})
    elif kind == "cbam":
        _layer(state, f"{name}cbam.ChannelGate.mlp.1", hidden, channels, bias=True)
        _layer(state, f"{name}cbam.ChannelGate.mlp.3", channels, hidden, bias=True)
        _layer(state, f"{name}cbam.SpatialGate.spatial.conv", 1, 2, 7, 7)
        _norm(state, f"{name}cbam.SpatialGate.spatial.bn", 1)


def _bam(state: State, name: str, channels: int) -> None:
    hidden = channels // 16
    _layer(state, f"{name}channel_att.gate_c.gate_c_fc_0", hidden, channels, bias=True)
    _norm(state, f"{name}channel_att.gate_c.gate_c_bn_1", hidden)
    _layer(state, f"{name}channel_att.gate_c.gate_c_fc_final", channels, hidden, bias=True)
    _layer(state, f"{name}spatial_att.gate_s.gate_s_conv_reduce0", hidden, channels, 1, 1, bias=True)
    _norm(state, f"{name}spatial_att.gate_s.gate_s_bn_reduce0", hidden)
    for i in range(2):
        _layer(state, f"{name}spatial_att.gate_s.gate_s_conv_di_{i}", hidden, hidden, 3, 3, bias=True)
        _norm(state, f"{name}spatial_att.gate_s.gate_s_bn_di_{i}", hidden)
    _layer(state, f"{name}spatial_att.gate_s.gate_s_conv_final", 1, hidden, 1, 1, bias=True)


def weights(kind: str, depth: int = 50, seed: int = 0) -> State:
    """Make a classifier's state dict, without a prefix.

    Args:
        kind: The attention, of :data:`KINDS`.
        depth: 50 or 101.
        seed: The random seed.
    """
    torch.manual_seed(seed)
    state: State = {}
    _layer(state, "conv1", 64, 3, 7, 7)
    _norm(state, "bn1", 64)
    channels = 64
    for stage, blocks in enumerate(BLOCKS[depth], start=1):
        width = 64 * 2 ** (stage - 1)
        for block in range(blocks):
            name = f"layer{stage}.{block}."
            shapes = [(width, channels, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)]
            for i, shape in enumerate(shapes, start=1):
                _layer(state, f"{name}conv{i}", *shape)
                _norm(state, f"{name}bn{i}", shape[0])
                if i == 3:  # small, so that residual additions do not lead to large numbers
                    state[f"{name}bn3.weight"] *= 0.3
            _attention(state, kind, name, 4 * width, ECA_KERNELS[depth][stage - 1])
            if block == 0:
                _layer(state, f"{name}downsample.0", 4 * width, channels, 1, 1)
                _norm(state, f"{name}downsample.1", 4 * width)
            channels = 4 * width
        if kind == "bam" and stage < 4:
            _bam(state, f"bam{stage}.", channels)
    _layer(state, "fc", 1000, 2048, bias=True)
    return state


def features(state: State, kind: str, depth: int, x: Tensor) -> list[Tensor]:
    """Compute the outputs of the four stages for images x, N x 3 x H x W."""

    def below(name: str) -> State:
        return {key.removeprefix(name): value for key, value in state.items() if key.startswith(name)}

    def normed(x: Tensor, name: str) -> Tensor:
        mean, variance, weight, bias = (
            state[f"{name}.{field}"] for field in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(x, mean, variance, weight, bias)

    def attended(x: Tensor, name: str, stage: int) -> Tensor:
        if kind == "sa":
            return shuffle_attention(x, below(f"{name}sa."), 64)
        if kind.startswith("se"):
            return squeeze_excitation(x, below(f"{name}se."))
        if kind == "eca":
            return efficient_channel_attention(x, below(f"{name}eca."))
        if kind == "sge":
            return spatial_group_enhance(x, below(f"{name}sge."), 64)
        return cbam(x, below(f"{name}cbam."), training=False) if kind == "cbam" else x

    x = F.max_pool2d(normed(F.conv2d(x, state["conv1.weight"], None, 2, 3), "bn1").relu(), 3, 2, 1)
    found = []
    for stage, blocks in enumerate(BLOCKS[depth], start=1):
        for block in range(blocks):
            name, stride = f"layer{stage}.{block}.", 2 if stage > 1 and block == 0 else 1
            out = normed(F.conv2d(x, state[f"{name}conv1.weight"]), f"{name}bn1").relu()
            out = normed(F.conv2d(out, state[f"{name}conv2.weight"], None, stride, 1), f"{name}bn2").relu()
            out = attended(normed(F.conv2d(out, state[f"{name}conv3.weight"]), f"{name}bn3"), name, stage)
            if block == 0:
                x = normed(F.conv2d(x, state[f"{name}downsample.0.weight"], None, stride), f"{name}downsample.1")
            x = (out + x).relu()
        if kind == "bam" and stage < 4:
            x = bam(x, below(f"bam{stage}."))
        found.append(x)
    return found
