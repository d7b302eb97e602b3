"""A warning where a training begins with frozen layers that no checkpoint has given their values."""

import logging
from typing import Any

from mmengine.hooks import Hook
from mmengine.logging import print_log
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sa_mmdet.messages import listed


class WarnOfFrozenLayers(Hook):
    """Warn, before the first step and after all checkpoints have been loaded, of frozen layers with initial values.

    ``frozen_stages`` and ``norm_eval`` of a base config stay when ``init_cfg=None`` is set over it. The training then
    runs, and detects nothing.
    """

    def before_train(self, runner: Any) -> None:
        runner.model.train()  # as every loop begins; norm_eval takes effect here
        names = untrained_frozen_norms(runner.model)
        if names:
            print_log(
                f"{len(names)} batch norms are frozen with the values with which a network is built ({listed(names)}), "
                "so that they and the convolutions before them never learn: no checkpoint that was loaded holds them. "
                "Load weights (init_cfg, load_from), or train all layers: frozen_stages=-1, norm_eval=False",
                "current",
                level=logging.WARNING,
            )


def untrained_frozen_norms(model: nn.Module) -> list[str]:
    """The names of the frozen batch norms of a model that have the values with which they were built.

    No trained network has such norms: their running statistics are 0 and 1, and their bias is 0.
    """
    return [name for name, norm in model.named_modules() if isinstance(norm, _BatchNorm) and _is_untrained(norm)]


def _is_untrained(norm: Any) -> bool:
    if norm.running_mean is None or norm.weight is None or norm.weight.requires_grad or norm.weight.numel() == 0:
        return False
    return (
        not norm.training
        and _all_equal(norm.running_mean, 0)
        and _all_equal(norm.running_var, 1)
        and _all_equal(norm.bias, 0)
    )


def _all_equal(tensor: Tensor, value: float) -> bool:
    return bool((tensor == value).all())
