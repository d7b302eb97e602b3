"""Reference implementations of the attention modules, written from their papers' formulas without the package's code.

Each function takes x (N x C x H x W), the parameters with the names of the released weights, and the module's options.
"""

import torch
from torch import Tensor

Parameters = dict[str, Tensor]


def shuffle_attention(
    x: Tensor, parameters: Parameters, groups: int, eps: float = 1e-5, transform: str = "affine", shuffle: bool = True
) -> Tensor:
    """Shuffle attention, computed one channel at a time."""
    channels = x.shape[1]
    k = channels // (2 * groups)
    positions = x.shape[2] * x.shape[3]

    def transformed(values: list[Tensor], j: int, prefix: str) -> Tensor:
        if transform == "none":
            return values[j]
        weight, bias = parameters[f"{prefix}weight"], parameters[f"{prefix}bias"].flatten()
        if transform == "conv":
            return sum(weight[j, i, 0, 0] * values[i] for i in range(k)) + bias[j]
        return weight.flatten()[j] * values[j] + bias[j]

    out: list[Tensor | None] = [None] * channels
    for g in range(groups):
        first = [x[:, 2 * k * g + j] for j in range(k)]
        second = [x[:, 2 * k * g + k + j] for j in range(k)]
        means = [y.sum((1, 2), keepdim=True) / positions for y in first]
        normalised = list(second)
        if "gn.weight" in parameters:
            for j, y in enumerate(second):
                mean = y.sum((1, 2), keepdim=True) / positions
                variance = ((y - mean) ** 2).sum((1, 2), keepdim=True) / positions
                normalised[j] = (y - mean) / torch.sqrt(variance + eps)
                normalised[j] = parameters["gn.weight"][j] * normalised[j] + parameters["gn.bias"][j]
        gated = [y * torch.sigmoid(transformed(means, j, "c")) for j, y in enumerate(first)]
        gated += [y * torch.sigmoid(transformed(normalised, j, "s")) for j, y in enumerate(second)]
        for j, y in enumerate(gated):
            c = 2 * k * g + j
            if shuffle:
                c = 2 * c if c < channels // 2 else 2 * (c - channels // 2) + 1
            out[c] = y
    return torch.stack([channel for channel in out if channel is not None], dim=1)


def group_branches(
    x: Tensor,
    parameters: Parameters,
    groups: int,
    branches: str = "both",
    fusion: str = "cat",
    shuffle: bool = True,
    eps: float = 1e-5,
) -> Tensor:
    """Shuffle attention taken apart, computed one channel at a time."""
    channels, positions = x.shape[1], x.shape[2] * x.shape[3]
    size = channels // groups
    out: list[Tensor | None] = [None] * channels
    for c in range(channels):
        j = c % size
        seen = [branches] if branches != "both" else ["channel", "spatial"]
        if branches == "both" and fusion == "cat":
            seen = ["channel"] if j < size // 2 else ["spatial"]
            j = j % (size // 2)
        mean = x[:, c].sum((1, 2), keepdim=True) / positions
        logit = torch.zeros_like(x[:, c])
        if "channel" in seen:
            logit = logit + parameters["cweight"].flatten()[j] * mean + parameters["cbias"].flatten()[j]
        if "spatial" in seen:
            variance = ((x[:, c] - mean) ** 2).sum((1, 2), keepdim=True) / positions
            normalised = (x[:, c] - mean) / torch.sqrt(variance + eps)
            normalised = parameters["gn.weight"][j] * normalised + parameters["gn.bias"][j]
            logit = logit + parameters["sweight"].flatten()[j] * normalised + parameters["sbias"].flatten()[j]
        place = c if not shuffle else 2 * c if c < channels // 2 else 2 * (c - channels // 2) + 1
        out[place] = x[:, c] / (1 + torch.exp(-logit))
    return torch.stack([channel for channel in out if channel is not None], dim=1)


def squeeze_excitation(x: Tensor, parameters: Parameters, pool: str = "avg", gate: str = "sigmoid") -> Tensor:
    squeezed = {
        "avg": x.sum((2, 3), keepdim=True) / (x.shape[2] * x.shape[3]),
        "max": x.flatten(2).max(2).values[..., None, None],
        "none": x,
    }[pool]

    def layer(values: Tensor, name: str) -> Tensor:
        out = torch.einsum("oc,nchw->nohw", parameters[f"fc.{name}.weight"], values)
        return out + parameters[f"fc.{name}.bias"][:, None, None] if f"fc.{name}.bias" in parameters else out

    excited = layer(layer(squeezed, "0").clamp(min=0), "2")
    function = {"sigmoid": lambda v: 1 / (1 + torch.exp(-v)), "tanh": torch.tanh, "relu": lambda v: v.clamp(min=0)}
    return x * function[gate](excited)


def efficient_channel_attention(x: Tensor, parameters: Parameters) -> Tensor:
    kernel = parameters["conv.weight"].flatten()
    half, channels = len(kernel) // 2, x.shape[1]
    mean = x.sum((2, 3)) / (x.shape[2] * x.shape[3])
    out = []
    for c in range(channels):
        near = [i for i in range(c - half, c + half + 1) if 0 <= i < channels]
        logit = sum(kernel[i - c + half] * mean[:, i] for i in near)
        out.append(x[:, c] / (1 + torch.exp(-torch.as_tensor(logit)))[:, None, None])
    return torch.stack(out, dim=1)


def spatial_group_enhance(x: Tensor, parameters: Parameters, groups: int) -> Tensor:
    size, positions = x.shape[1] // groups, x.shape[2] * x.shape[3]
    out = []
    for g in range(groups):
        part = x[:, g * size : (g + 1) * size]
        mean = part.sum((2, 3), keepdim=True) / positions
        likeness = (part * mean).sum(1)
        centred = likeness - likeness.sum((1, 2), keepdim=True) / positions
        if positions > 1:
            deviation = torch.sqrt((centred**2).sum((1, 2), keepdim=True) / (positions - 1))
            centred = centred / (deviation + 1e-5)
        logit = centred * parameters["weight"].flatten()[g] + parameters["bias"].flatten()[g]
        out.append(part / (1 + torch.exp(-logit))[:, None])
    return torch.cat(out, dim=1)


def cbam(x: Tensor, parameters: Parameters, training: bool, eps: float = 1e-5) -> Tensor:
    def perceptron(pooled: Tensor) -> Tensor:
        names = [f"ChannelGate.mlp.{i}.{field}" for i in (1, 3) for field in ("weight", "bias")]
        first, first_bias, second, second_bias = (parameters[name] for name in names)
        return (pooled @ first.T + first_bias).clamp(min=0) @ second.T + second_bias

    flat = x.flatten(2)
    channel = perceptron(flat.sum(2) / flat.shape[2]) + perceptron(flat.max(2).values)
    x = x / (1 + torch.exp(-channel))[..., None, None]
    pooled = torch.stack((x.max(1).values, x.sum(1) / x.shape[1]), dim=1)
    weight = parameters["SpatialGate.spatial.conv.weight"]
    half = weight.shape[-1] // 2
    padded = torch.zeros(*pooled.shape[:2], pooled.shape[2] + 2 * half, pooled.shape[3] + 2 * half, dtype=x.dtype)
    padded[:, :, half : half + pooled.shape[2], half : half + pooled.shape[3]] = pooled
    windows = padded.unfold(2, weight.shape[-1], 1).unfold(3, weight.shape[-1], 1)
    logit = torch.einsum("nihwab,iab->nhw", windows, weight[0])
    if training:
        mean, variance = logit.mean(), logit.var(unbiased=False)
    else:
        mean, variance = (parameters[f"SpatialGate.spatial.bn.running_{name}"] for name in ("mean", "var"))
    logit = (logit - mean) / torch.sqrt(variance + eps)
    logit = logit * parameters["SpatialGate.spatial.bn.weight"] + parameters["SpatialGate.spatial.bn.bias"]
    return x / (1 + torch.exp(-logit))[:, None]


def bam(x: Tensor, parameters: Parameters, eps: float = 1e-5) -> Tensor:
    """Bottleneck attention, with batch norms in evaluation mode."""

    def layer(values: Tensor, name: str, dilation: int = 1) -> Tensor:
        weight, bias = parameters[f"{name}.weight"], parameters[f"{name}.bias"]
        if weight.shape[-1] == 3:  # sum of nine shifted copies of the zero-padded map
            n, c, h, w = values.shape
            padded = torch.zeros(n, c, h + 2 * dilation, w + 2 * dilation, dtype=values.dtype)
            padded[:, :, dilation : dilation + h, dilation : dilation + w] = values
            total = torch.zeros(n, weight.shape[0], h, w, dtype=values.dtype)
            for i in range(3):
                for j in range(3):
                    part = padded[:, :, i * dilation : i * dilation + h, j * dilation : j * dilation + w]
                    total = total + torch.einsum("oc,nchw->nohw", weight[:, :, i, j], part)
        else:
            total = torch.einsum("oc,nchw->nohw", weight.flatten(1), values)
        return total + bias[:, None, None]

    def norm_relu(values: Tensor, name: str) -> Tensor:
        mean, variance, weight, bias = (
            parameters[f"{name}.{field}"][:, None, None] for field in ("running_mean", "running_var", "weight", "bias")
        )
        return ((values - mean) / torch.sqrt(variance + eps) * weight + bias).clamp(min=0)

    gate = "channel_att.gate_c.gate_c_"
    channel = x.sum((2, 3), keepdim=True) / (x.shape[2] * x.shape[3])
    channel = layer(norm_relu(layer(channel, f"{gate}fc_0"), f"{gate}bn_1"), f"{gate}fc_final")
    gate = "spatial_att.gate_s.gate_s_"
    spatial = norm_relu(layer(x, f"{gate}conv_reduce0"), f"{gate}bn_reduce0")
    for i in range(2):
        spatial = norm_relu(layer(spatial, f"{gate}conv_di_{i}", 4), f"{gate}bn_di_{i}")
    return x * (1 + 1 / (1 + torch.exp(-channel * layer(spatial, f"{gate}conv_final"))))
