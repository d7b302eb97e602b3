"""A BasicBlock that takes plugins, which MMDetection's refuses."""

from typing import Any

from mmdet.models.backbones.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn


class PluginBasicBlock(BasicBlock):
    """MMDetection's BasicBlock with plugin layers between its last norm and the residual addition.

    Args:
        inplanes: The number of input channels.
        planes: The number of output channels.
        plugins: As MMDetection's Bottleneck takes them; the only position is 'after_conv2'.
        **kwargs: As :class:`mmdet.models.backbones.resnet.BasicBlock` takes them.

    Raises:
        ValueError: A plugin has another position.
    """

    make_block_plugins = Bottleneck.make_block_plugins
    forward_plugin = Bottleneck.forward_plugin

    def __init__(self, inplanes: int, planes: int, *, plugins: list[dict] | None = None, **kwargs: Any):
        super().__init__(inplanes, planes, **kwargs)
        for plugin in plugins or []:
            if plugin["position"] != "after_conv2":
                raise ValueError(
                    f"a plugin of ResNet-18 or -34 has the position {plugin['position']!r}: "
                    "their blocks take plugins at 'after_conv2' only"
                )
        self.after_conv2_plugin_names: list[str] = self.make_block_plugins(
            planes * self.expansion, [plugin["cfg"] for plugin in plugins or []]
        )

    @property
    def norm2(self) -> Any:
        """The last norm and the plugins after it; the inherited forward calls this, and so runs both."""
        return self._norm2_then_plugins

    def _norm2_then_plugins(self, x: Tensor) -> Tensor:
        norm: nn.Module = getattr(self, self.norm2_name)
        return self.forward_plugin(norm(x), self.after_conv2_plugin_names)
