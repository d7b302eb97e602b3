"""Operations on tensors, which import nothing but torch.

One legend for all shapes: N images, C channels, H x W positions, L = H * W, G groups of channels, K = C / (2G)
channels of each of a group's two branches.
"""

from .functional import shuffle_attention, shuffle_attention_gates, shuffle_attention_residual
from .reference import Parameters

__all__ = ["Parameters", "shuffle_attention", "shuffle_attention_gates", "shuffle_attention_residual"]
