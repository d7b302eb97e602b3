"""What a module does that has attention behind it or in it, beside what its class does."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from sa_mmdet.attention import ExactStart
from sa_mmdet.checkpoints.layer_names import named_layers

from .classes import Derived
from .outputs import size_of_tokens


@dataclass(frozen=True)
class Insertion:
    """How attention stands behind a module.

    Attributes:
        name: The module's name for the layer.
        scale: What the layer's output is multiplied by; None for nothing.
        exact: Whether the layer starts as the identity.
        sizes: The position of the argument by which the module is told the height and width of its tokens, or None.
        front: Whether the layer is in front of the module instead, whose only argument is a map then.
    """

    name: str
    scale: float | None
    exact: bool
    sizes: int | None
    front: bool = False


class Attending(Derived):
    """A module that runs attention behind its own forward, or in front of it.

    Weights that have none for the attention, as those of the network as it was, load without a missing key: the
    attention starts as the identity again, or keeps its values where it has no such start.
    """

    insertion: Insertion
    attention_loaded: bool = False  # whether the last weights that were loaded held the attention's

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        insertion = self.insertion
        if insertion.front:
            return super().forward(self._attend(args[0]))
        output = super().forward(*args, **kwargs)
        tokens = insertion.sizes is not None and isinstance(output, Tensor) and output.dim() == 3
        if not tokens and not (isinstance(output, Tensor) and output.dim() == 4):
            raise TypeError(
                f"{type(self).__name__} returned {_described(output)} instead of a feature map, N x C x H x W, for "
                f"{insertion.name}: choose another place for it"
            )
        if not tokens:
            return self._attend(output)
        size = size_of_tokens(insertion.sizes or 0, args, kwargs)
        return self._attend(output.transpose(1, 2).unflatten(2, size)).flatten(2).transpose(1, 2)

    def _attend(self, x: Tensor) -> Tensor:
        """The attention's output for a map, N x C x H x W, divided by its first gate."""
        x = getattr(self, self.insertion.name)(x)
        return x if self.insertion.scale is None else x * self.insertion.scale

    @property
    def inserted_attention(self) -> nn.Module:
        """The layer."""
        return getattr(self, self.insertion.name)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        own = f"{prefix}{self.insertion.name}."
        self.attention_loaded = any(key.startswith(own) for key in state_dict)
        if not self.attention_loaded:
            if self.insertion.exact and any(key.startswith(prefix) for key in state_dict):
                _start_again(self.inserted_attention)
            state_dict.update(
                {f"{own}{key}": value.clone() for key, value in self.inserted_attention.state_dict().items()}
            )
        super()._load_from_state_dict(state_dict, prefix, *arguments)


class Replacing(Derived):
    """Attention in the place of another module, whose weights it does not take: they are left out."""

    attention_loaded: bool = False

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        weights = self.state_dict()
        self.attention_loaded = all(f"{prefix}{key}" in state_dict for key in weights)
        if not self.attention_loaded:
            for key in [key for key in state_dict if key.startswith(prefix)]:
                del state_dict[key]
            state_dict.update({f"{prefix}{key}": value.clone() for key, value in weights.items()})
        super()._load_from_state_dict(state_dict, prefix, *arguments)


@dataclass(frozen=True)
class Inserted:
    """Attention in a network.

    Attributes:
        weights: What stands before the names of its weights, such as 'layer4.2.inserted_sa.'.
        holder: The module that loads them.
        attention: The layer.
    """

    weights: str
    holder: "Attending | Replacing"
    attention: nn.Module

    def is_in(self, state: Mapping[str, Any], prefix: str) -> bool:
        """Whether weights of the network, whose names begin with a prefix, hold those of the layer."""
        return all(f"{prefix}{self.weights}{key}" in state for key in self.attention.state_dict())


def inserted(network: nn.Module) -> list[Inserted]:
    """The attention that was inserted into a network."""
    found = []
    for name, module in named_layers(network):
        begin = f"{name}." if name else ""
        if isinstance(module, Attending):
            found.append(Inserted(f"{begin}{module.insertion.name}.", module, module.inserted_attention))
        elif isinstance(module, Replacing):
            found.append(Inserted(begin, module, module))
    return found


class HoldingAttention(Derived):
    """A network with attention in some of its modules."""

    def init_weights(self) -> None:
        """Initialise the weights as the network does, but not those of the attention, which has its own start."""
        before = []
        for layer in inserted(self):
            layer.holder.attention_loaded = False
            before.append({key: value.clone() for key, value in layer.attention.state_dict().items()})
        own = getattr(super(), "init_weights", None)
        if own is not None:
            own()
        for layer, weights in zip(inserted(self), before, strict=True):
            if not layer.holder.attention_loaded:
                layer.attention.load_state_dict(weights)

    def train(self, mode: bool = True) -> Any:
        """Set the mode as the network does; ``norm_eval`` does not concern the norms inside of attention.

        See :meth:`sa_mmdet.backbones.AttentionResNet.train`.
        """
        super().train(mode)
        for layer in inserted(self):
            if layer.attention.training:  # not in frozen stages
                layer.attention.train(mode)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        layers = inserted(self)
        new = [layer for layer in layers if not layer.is_in(state_dict, prefix)]
        if new and any(key.startswith(prefix) for key in state_dict):
            exact = all(isinstance(layer.holder, Attending) and layer.holder.insertion.exact for layer in new)
            print_log(
                f"{type(self).__name__}: {len(new)} of {len(layers)} inserted attention layers are not in the weights "
                f"and start {'as the identity' if exact else 'untrained'}",
                "current",
            )
        super()._load_from_state_dict(state_dict, prefix, *arguments)


def _start_again(attention: nn.Module) -> None:
    if isinstance(attention, ExactStart):
        with torch.no_grad():
            attention.start_exactly()


def _described(output: Any) -> str:
    return f"a tensor of {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
