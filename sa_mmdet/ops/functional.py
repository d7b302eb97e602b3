"""Shuffle attention, alone and with the end of a residual block, as functions of tensors."""

import torch
from torch import Tensor

from . import backends, compiled, custom_op, reference
from .fusion import obstacle_in_call, obstacle_in_parameters, use_fused
from .reference import Parameters
from .tensors import at_least_float32


def shuffle_attention(
    x: Tensor,
    channel_weight: Tensor | None,
    channel_bias: Tensor | None,
    spatial_weight: Tensor | None,
    spatial_bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    groups: int,
    eps: float = 1e-5,
    shuffle: bool = True,
    implementation: str = "auto",
) -> Tensor:
    """Gate the channels of a feature map and shuffle them.

    Each of the G groups is halved. With m the mean of a channel over its positions and xh the channel normalised over
    them, the first half is multiplied by sigmoid(channel_weight * m + channel_bias), the second by
    sigmoid(spatial_weight * (norm_weight * xh + norm_bias) + spatial_bias). Then channel c moves to 2c if c < C/2, to
    2(c - C/2) + 1 otherwise.

    Source: SA-Net, ICASSP 2021 (arXiv 2102.00240), equations 1-4.

    Args:
        x: N x C x H x W.
        channel_weight: K elements; all groups share them. With K x K elements it mixes the channels of a branch, as a
            1 x 1 convolution does; None, of the bias too, leaves both out.
        channel_bias: K elements or None.
        spatial_weight: K or K x K elements or None, as ``channel_weight``.
        spatial_bias: K elements or None.
        norm_weight: The weight of the normalisation, K elements; None leaves the normalisation out.
        norm_bias: The bias of the normalisation, K elements or None.
        groups: G; 2G divides C.
        eps: Added to the variance.
        shuffle: Whether to shuffle the channels.
        implementation: 'fused' for one operator that keeps x and two numbers per channel for its backward,
            'reference' for the formula in PyTorch's own operators, 'auto' for the first where it applies: on all six
            parameters with K elements, an even G and the shuffle, on a CPU or, with Triton, on a GPU.

    Returns:
        N x C x H x W, of the dtype of ``x``; the statistics of half-precision input are computed in float32.

    Raises:
        ValueError: ``x`` is not four-dimensional, ``groups`` does not fit its channels, ``implementation`` is unknown,
            or it is 'fused' and does not apply.
    """
    _check(x, groups)
    parameters = Parameters(channel_weight, channel_bias, spatial_weight, spatial_bias, norm_weight, norm_bias)
    if use_fused(implementation, _obstacle(x, parameters, groups, shuffle)):
        if backends.obstacle_to_compiled(x) is None:
            return compiled.shuffle_attention(x, None, compiled.NO_NORM, compiled.NO_NORM, parameters, eps)
        return custom_op.fused(x, None, None, None, _stacked(parameters), groups, eps, implementation == "auto")[0]
    return reference.attention(x, parameters, groups, eps, shuffle)


def shuffle_attention_residual(
    x: Tensor,
    identity: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    channel_weight: Tensor | None,
    channel_bias: Tensor | None,
    spatial_weight: Tensor | None,
    spatial_bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    groups: int,
    eps: float = 1e-5,
    shuffle: bool = True,
    implementation: str = "auto",
) -> Tensor:
    """Compute the end of a residual block: relu(identity + shuffle_attention(scale * x + shift)).

    Args:
        x: N x C x H x W, the output of the block's last convolution.
        identity: N x C x H x W.
        scale: C elements; with ``shift``, the block's last batch norm in evaluation mode. None for 1.
        shift: C elements. None for 0.
        channel_weight, channel_bias: The parameters of the channel branch, as :func:`shuffle_attention` takes them.
        spatial_weight, spatial_bias: Those of the spatial branch.
        norm_weight, norm_bias: Those of the normalisation.
        groups: G; 2G divides C.
        eps: Added to the variance of scale * x + shift.
        shuffle: Whether to shuffle the channels.
        implementation: 'fused', 'reference' or 'auto', as :func:`shuffle_attention` takes it.

    Returns:
        N x C x H x W, of the dtype of ``x``.

    Raises:
        ValueError: ``identity`` has another shape than ``x``, or as :func:`shuffle_attention` raises it.
    """
    if identity.shape != x.shape:
        raise ValueError(
            f"identity of shape {tuple(identity.shape)} for x of shape {tuple(x.shape)}: they must be equal"
        )
    _check(x, groups)
    parameters = Parameters(channel_weight, channel_bias, spatial_weight, spatial_bias, norm_weight, norm_bias)
    if use_fused(implementation, _obstacle(x, parameters, groups, shuffle)):
        identity = identity.to(x.dtype)
        if backends.obstacle_to_compiled(x) is None:
            norm = (scale, shift, None, None, 0.0)
            return compiled.shuffle_attention(x, identity, norm, compiled.NO_NORM, parameters, eps)
        arguments = (x, identity, scale, shift, _stacked(parameters), groups, eps)
        return custom_op.fused(*arguments, implementation == "auto")[0]
    return reference.residual(x, identity, scale, shift, parameters, groups, eps, shuffle)


def shuffle_attention_normalised(
    x: Tensor, normalised: Tensor, parameters: Parameters, groups: int, shuffle: bool = True
) -> Tensor:
    """Compute :func:`shuffle_attention` with a normalisation of the caller's.

    Args:
        x: N x C x H x W.
        normalised: The result of the caller's normalisation of :func:`spatial_branch`, NG x K x H x W.
        parameters: As :func:`shuffle_attention` takes them; those of the normalisation are not used.
        groups: G.
        shuffle: Whether to shuffle the channels.

    Returns:
        N x C x H x W, of the dtype of ``x``.
    """
    return reference.attention(x, parameters, groups, 0.0, shuffle, normalised)


def spatial_branch(x: Tensor, groups: int, dtype: torch.dtype | None = None) -> Tensor:
    """Select what :func:`shuffle_attention` normalises.

    Args:
        x: N x C x H x W.
        groups: G.
        dtype: The dtype of the result; None for at least float32.

    Returns:
        NG x K x H x W.

    Raises:
        ValueError: ``x`` is not four-dimensional, or ``groups`` does not fit its channels.
    """
    _check(x, groups)
    return reference.branches(x, groups)[1].to(dtype or at_least_float32(x))


def shuffle_attention_gates(
    x: Tensor, parameters: Parameters, groups: int, eps: float = 1e-5, normalised: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Compute the gates by which :func:`shuffle_attention` multiplies.

    Args:
        x: N x C x H x W.
        parameters: As :func:`shuffle_attention` takes them.
        groups: G.
        eps: Added to the variance.
        normalised: As :func:`shuffle_attention_normalised` takes it; None to normalise here.

    Returns:
        The channel branch's gates, N x G x K x 1 x 1, and the spatial branch's, N x G x K x H x W, all from 0 to 1.
    """
    channel, spatial = reference.gates(*reference.branches(x, groups), Parameters(*parameters), eps, normalised)
    return channel.unflatten(0, (x.shape[0], groups)), spatial.unflatten(0, (x.shape[0], groups))


def _check(x: Tensor, groups: int) -> None:
    if x.dim() != 4:
        raise ValueError(f"shuffle_attention takes N x C x H x W, got a tensor of shape {tuple(x.shape)}")
    if groups < 1 or x.shape[1] % (2 * groups):
        raise ValueError(f"groups={groups} does not fit {x.shape[1]} channels: 2 * groups must divide them")


def _obstacle(x: Tensor, parameters: Parameters, groups: int, shuffle: bool) -> str | None:
    return obstacle_in_parameters(parameters, groups, x.shape[1], shuffle) or obstacle_in_call(x)


def _stacked(parameters: Parameters) -> Tensor:
    """The parameters as the rows of one tensor, 6 x K."""
    return torch.stack([parameter.flatten() for parameter in parameters if parameter is not None])
