"""Sigmoid focal loss (Lin et al., 2017), as mmcv's kernels compute it.

torchvision's loss differs for large logits: mmcv takes the logarithm of the probability, which in single precision is
0 or 1 beyond a logit of 17, and clamps it; torchvision computes with the logit. Therefore this uses only PyTorch.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Compute the loss of each logit.

    Args:
        input: (n, classes), logits.
        target: (n,), the index of each row's class; any other number is the background.
        weight: (classes,) or empty. A row's loss is multiplied by its class's weight; the background's weight is 1
            (mmcv reads beyond the end of the weights there).
        output: (n, classes); the result is written to it.
        gamma: The exponent that reduces the loss of easy examples.
        alpha: The weight of positive examples; negative examples have the weight 1 - alpha.
    """
    p, q, log_p, log_q = _probabilities(input)
    positive = -alpha * q.pow(gamma) * log_p
    negative = -(1 - alpha) * p.pow(gamma) * log_q
    output.copy_(_select(target, positive, negative, weight))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Compute the derivative of each logit's loss, and write it to grad_input."""
    p, q, log_p, log_q = _probabilities(input)
    positive = -alpha * q.pow(gamma) * (q - gamma * p * log_p)
    negative = -(1 - alpha) * p.pow(gamma) * (gamma * q * log_q - p)
    grad_input.copy_(_select(target, positive, negative, weight))


def _probabilities(logits: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The probability, its complement, and the logarithms of both; half precision is computed in single precision."""
    p = 1 / (1 + torch.exp(-(logits if logits.dtype == torch.double else logits.float())))
    q = 1 - p
    tiny = torch.finfo(torch.float32).tiny
    return p, q, p.clamp(min=tiny).log(), q.clamp(min=tiny).log()


def _select(target: Tensor, positive: Tensor, negative: Tensor, weight: Tensor) -> Tensor:
    classes = positive.shape[1]
    chosen = torch.where(target[:, None] == torch.arange(classes, device=target.device), positive, negative)
    if not weight.numel():
        return chosen
    background = (target < 0) | (target >= classes)
    return chosen * pad(weight, (0, 1), value=1.0)[target.masked_fill(background, classes)][:, None]
