"""Shuffle attention, alone and with the end of a residual block, as functions of tensors."""

import torch
from torch import Tensor

from . import formula, operator
from .formula import Parameters
from .fusion import obstacle_in_call, obstacle_in_parameters, use_fused


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

    Each of the G groups is halved. With m the mean of a channel over its positions and xh the channel standardised
    over them, the first half is multiplied by sigmoid(channel_weight * m + channel_bias), the second by
    sigmoid(spatial_weight * (norm_weight * xh + norm_bias) + spatial_bias). Channel c of the result moves to 2c if
    c < C/2, to 2(c - C/2) + 1 otherwise.

    Source: SA-Net, ICASSP 2021 (arXiv 2102.00240), equations 1-4.

    Args:
        x: N x C x H x W.
        channel_weight: K elements, as are the five that follow; all groups share them. With K x K elements it mixes
            the channels of a branch, as a 1 x 1 convolution does; None, of the bias too, leaves both out.
        channel_bias: K elements or None.
        spatial_weight: K or K x K elements or None, see ``channel_weight``.
        spatial_bias: K elements or None.
        norm_weight: Scale of the standardisation, K elements; None leaves the standardisation out.
        norm_bias: Shift of the standardisation, K elements or None.
        groups: G; 2G divides C.
        eps: Added to the variance.
        shuffle: Whether to move the channels.
        implementation: 'fused' is one operator that keeps x and two numbers a channel for its backward, 'reference' the
            formula in PyTorch's own operators, 'auto' the first where it applies. It takes all six parameters with K
            elements, an even G and the shuffle, on the CPU or, with Triton, on a GPU.

    Returns:
        N x C x H x W, of the dtype of ``x``; the statistics of half-precision input are taken in float32.

    Raises:
        ValueError: ``x`` is not four-dimensional, ``groups`` does not fit its channels, ``implementation`` is unknown,
            or 'fused' is asked for and does not apply.
    """
    _check(x, groups)
    parameters = (channel_weight, channel_bias, spatial_weight, spatial_bias, norm_weight, norm_bias)
    if use_fused(implementation, _obstacle(x, parameters, groups, shuffle)):
        return operator.fused(x, None, None, None, _stacked(parameters), groups, eps, implementation == "auto")[0]
    return formula.attention(x, parameters, groups, eps, shuffle)


def shuffle_attention_normalised(
    x: Tensor, normalised: Tensor, parameters: Parameters, groups: int, shuffle: bool = True
) -> Tensor:
    """:func:`shuffle_attention` with the standardisation left to the caller.

    Args:
        x: N x C x H x W.
        normalised: What becomes of :func:`spatial_branch` by a normalisation of the caller's, of its shape.
        parameters: The six of :func:`shuffle_attention`, of which the last two are not used.
        groups: G.
        shuffle: Whether to move the channels.

    Returns:
        N x C x H x W, of the dtype of ``x``.
    """
    return formula.attention(x, parameters, groups, 0.0, shuffle, normalised)


def spatial_branch(x: Tensor, groups: int, dtype: torch.dtype | None = None) -> Tensor:
    """What :func:`shuffle_attention` standardises.

    Args:
        x: N x C x H x W.
        groups: G.
        dtype: Of the result; None for at least float32.

    Returns:
        NG x K x H x W.

    Raises:
        ValueError: As :func:`shuffle_attention`.
    """
    _check(x, groups)
    return formula.branches(x, groups)[1].to(dtype or torch.promote_types(x.dtype, torch.float32))


def _check(x: Tensor, groups: int) -> None:
    if x.dim() != 4:
        raise ValueError(f"shuffle_attention takes N x C x H x W, got a tensor of shape {tuple(x.shape)}")
    if groups < 1 or x.shape[1] % (2 * groups):
        raise ValueError(f"groups={groups} does not fit {x.shape[1]} channels: 2 * groups must divide them")


def shuffle_attention_gates(
    x: Tensor, parameters: Parameters, groups: int, eps: float = 1e-5, normalised: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The gates by which :func:`shuffle_attention` multiplies.

    Args:
        x: N x C x H x W.
        parameters: The six of :func:`shuffle_attention`, in its order.
        groups: G.
        eps: Added to the variance.
        normalised: As :func:`shuffle_attention_normalised` takes it, in place of the standardisation; None for that.

    Returns:
        Of the channel branch N x G x K x 1 x 1, of the spatial branch N x G x K x H x W, both 0 to 1.
    """
    gates = formula.gates(*formula.branches(x, groups), parameters, eps, normalised)
    return gates[0].unflatten(0, (x.shape[0], groups)), gates[1].unflatten(0, (x.shape[0], groups))


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
    """The end of a residual block: relu(identity + shuffle_attention(scale * x + shift)).

    Args:
        x: N x C x H x W, the output of the block's last convolution.
        identity: N x C x H x W.
        scale: C elements, with ``shift`` the last batch norm in evaluation mode; None for both if there is none.
        shift: C elements or None.
        channel_weight: This and the rest as :func:`shuffle_attention` takes them.
        channel_bias: See there.
        spatial_weight: See there.
        spatial_bias: See there.
        norm_weight: See there.
        norm_bias: See there.
        groups: See there.
        eps: See there.
        shuffle: See there.
        implementation: See there.

    Returns:
        N x C x H x W, of the dtype of ``x``.

    Raises:
        ValueError: As :func:`shuffle_attention`, or ``identity`` has another shape.
    """
    if identity.shape != x.shape:
        raise ValueError(
            f"identity of shape {tuple(identity.shape)} for x of shape {tuple(x.shape)}: they must be equal"
        )
    parameters = (channel_weight, channel_bias, spatial_weight, spatial_bias, norm_weight, norm_bias)
    _check(x, groups)
    if use_fused(implementation, _obstacle(x, parameters, groups, shuffle)):
        arguments = (x, identity.to(x.dtype), scale, shift, _stacked(parameters), groups, eps)
        return operator.fused(*arguments, implementation == "auto")[0]
    return formula.residual(x, identity, scale, shift, parameters, groups, eps, shuffle)


def _obstacle(x: Tensor, parameters: Parameters, groups: int, shuffle: bool) -> str | None:
    return obstacle_in_parameters(parameters, groups, x.shape[1], shuffle) or obstacle_in_call(x)


def _stacked(parameters: Parameters) -> Tensor:
    """The six parameters as rows of one tensor."""
    return torch.stack([parameter.flatten() for parameter in parameters if parameter is not None])
