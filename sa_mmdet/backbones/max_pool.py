"""The max pooling of ResNet's stem, without the positions of the maxima where no gradient needs them."""

from typing import Any

import torch
from torch import Tensor, nn

from sa_mmdet.ops import backends
from sa_mmdet.ops.fusion import obstacle_in_call


class StemMaxPool(nn.MaxPool2d):
    """PyTorch's max pooling, with an operator of its own on CPUs where there are no derivatives.

    That is in inference, and in training where the stem is frozen. PyTorch's operator also records the position of each
    maximum, which only gradients need; in float32 it takes more than ten times as long. The results are the same but
    for the sign of zero. There are no new keys in the state dict.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.obstacle(x):
            return super().forward(x)
        pooled: Tensor = torch.ops.sa_mmdet_cpu.max_pool(x.contiguous())
        return pooled

    def obstacle(self, x: Tensor) -> str | None:
        """Why PyTorch's own operator must pool this tensor, or None."""
        if reason := obstacle_in_call(x):
            return reason
        if x.device.type != "cpu" or x.dim() != 4:
            return f"the input is a tensor of {x.dim()} dimensions on {x.device.type}"
        if torch.is_grad_enabled() and x.requires_grad:
            return "there are derivatives"
        options = (self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode, self.return_indices)
        if options != (3, 2, 1, 1, False, False):
            return "its options are not those of ResNet's stem"
        return backends.obstacle_to_block_end(x)


def replace_max_pool(backbone: Any) -> None:
    """Let the pooling of a ResNet's stem be this class, with its options and hooks; another layer stays as it is."""
    layer = getattr(backbone, "maxpool", None)
    if type(layer) is nn.MaxPool2d:
        layer.__class__ = StemMaxPool
