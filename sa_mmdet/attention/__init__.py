"""Attention modules, one a file: plugin layers that any OpenMMLab config can name.

They are registered in MMEngine's root registry, where the registries of all OpenMMLab packages look last: a plugin
layer registered in MMDetection alone is not found when the default scope is another's.
"""

from .shuffle_attention import ShuffleAttention

__all__ = ["ShuffleAttention"]
