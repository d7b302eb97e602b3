"""The names that the layers of a network have in checkpoints."""

from collections.abc import Iterator

from torch import nn

# The attributes under which wrappers hold what they wrap.
_WRAPPED = ("_fsdp_wrapped_module", "_checkpoint_wrapped_module")


def named_layers(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """All layers of a network under the names that their weights have in checkpoints.

    Wrappers of single layers, as FSDP and activation checkpointing insert them, are not in these names.
    """
    for name, layer in module.named_modules():
        if not any(hasattr(layer, wrapped) for wrapped in _WRAPPED):
            yield ".".join(part for part in name.split(".") if part not in _WRAPPED), layer
