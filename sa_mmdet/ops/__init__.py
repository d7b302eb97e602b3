"""Arithmetic on tensors. Knows nothing but torch.

Shapes throughout: N images, C channels, H x W positions, L = H*W, G groups, K = C / (2G) channels of a branch.
"""

from .shuffle_attention import shuffle_attention, shuffle_attention_gates, shuffle_attention_residual

__all__ = ["shuffle_attention", "shuffle_attention_gates", "shuffle_attention_residual"]
