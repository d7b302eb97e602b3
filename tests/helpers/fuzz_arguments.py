"""Random arguments of layers and backbones: each is built, or refused in one sentence.

Run more of them with `python tests/helpers/fuzz_arguments.py 10000`.
"""

import random
import sys
import time
from collections import Counter
from typing import Any

import torch
from fuzzing import main, with_costs
from mmdet.registry import MODELS

import sa_mmdet  # noqa: F401  (registers them)

# fmt: off
_INTEGERS: list[Any] = [-(2**63), -64, -1, 0, 1, 2, 3, 5, 7, 8, 16, 63, 64, 65, 255]
_TEXTS: list[Any] = ["", "64", "auto", "sigmoid", "avg", "conv", "\u2028"]
_FLAGS: list[Any] = [True, False]
_LAYER_CONFIGS: list[Any] = [None, {"type": "CBAM"}, {"type": "BAM"}, {"type": "ShuffleAttention", "groups": 3}]
_PLUGIN: dict[str, Any] = {"cfg": {"type": "CBAM"}, "position": "after_conv2"}
# Values of the type that an option has, whether they fit or not; other types are refused by whoever uses them.
_ANY: dict[str, list[Any]] = {
    **dict.fromkeys(["groups", "ratio", "kernel_size"], _INTEGERS),
    "dilation": [1, 2, 3, 8, 64],
    **dict.fromkeys(["transform", "gate", "pool", "implementation"], _TEXTS),
    **dict.fromkeys(["norm", "shuffle", "bias"], _FLAGS),
    "eps": [-1.0, 0.0, 1e-9, 0.5, 1e300, float("nan"), float("inf")],
    "stage_with_attention": [None, [], [True], [True, False, True, False], [False] * 4, [True] * 5],
    "attention": [*_LAYER_CONFIGS, [], [None] * 4, [{"type": "CBAM"}] * 3, [{"type": "CBAM"}, None, None, None]],
    "stage_attention": _LAYER_CONFIGS,
    "plugins": [None, [], [_PLUGIN], [_PLUGIN] * 2, [{**_PLUGIN, "position": "after_conv3"}]],
}
_FITTING: dict[str, list[Any]] = {
    "groups": [1, 2, 4, 8, 16], "eps": [1e-5, 1e-3], "transform": ["affine", "conv", "none"], "ratio": [1, 4, 16],
    "gate": ["tanh"], "pool": ["max", "none"], "kernel_size": [1, 3, 5, 7], "dilation": [1, 2, 4],
    "implementation": ["auto", "reference", "fused"],
}
# fmt: on
_LAYERS: dict[str, list[str]] = {
    "ShuffleAttention": ["groups", "eps", "norm", "transform", "shuffle", "implementation"],
    "SqueezeExcitation": ["ratio", "bias", "pool", "gate"],
    "EfficientChannelAttention": ["kernel_size"],
    "SpatialGroupEnhance": ["groups"],
    "CBAM": ["ratio", "kernel_size"],
    "BAM": ["ratio", "dilation"],
}
_BACKBONE = ["groups", "stage_with_attention", "implementation", "attention", "stage_attention", "plugins"]
_OPTIONS = [*_BACKBONE, "in_channels", *(option for options in _LAYERS.values() for option in options)]


def arguments(rng: random.Random, options: list[str]) -> dict[str, Any]:
    chosen = rng.sample(options, rng.randrange(len(options) + 1))
    return {o: rng.choice(_FITTING[o]) if o in _FITTING and rng.random() < 0.4 else rng.choice(_ANY[o]) for o in chosen}


def layer(rng: random.Random) -> tuple[dict[str, Any], bool]:
    kind = rng.choice(list(_LAYERS))
    channels = rng.choice([1, 2, 7, 8, 32, 64, 255, 256])
    return dict(type=kind, in_channels=channels, **arguments(rng, _LAYERS[kind])), True


def backbone(rng: random.Random) -> tuple[dict[str, Any], bool]:
    kind = rng.choice(["SAResNet", "AttentionResNet"])
    options = [o for o in _BACKBONE if (o not in ("groups", "implementation")) == (kind == "AttentionResNet")]
    chosen = arguments(rng, [*options, *(["stage_with_attention"] if kind == "SAResNet" else [])])
    if rng.random() < 0.4 and kind == "AttentionResNet":
        name = rng.choice(list(_LAYERS))
        chosen["attention"] = dict(type=name, **arguments(rng, _LAYERS[name]))
    return dict(type=kind, depth=rng.choice([18, 50]), base_channels=16, **chosen), False


def fuzz(count: int, seed: int = 0) -> Counter:
    """Build from ``count`` random arguments and count the answers. Anything but one sentence is a failure."""
    rng, answers, slowest = random.Random(seed), Counter[str](), 0.0
    for _ in range(count):
        cfg, is_layer = layer(rng) if rng.random() < 0.9 else backbone(rng)
        begin = time.monotonic()
        try:
            module = MODELS.build(dict(cfg))
            if is_layer:
                module.eval()
                with torch.no_grad():
                    assert module(torch.randn(1, cfg["in_channels"], 5, 6)).shape == (1, cfg["in_channels"], 5, 6)
            answers["built"] += 1
        except (ValueError, TypeError, KeyError) as error:
            message = str(error)
            named = [option for option in _OPTIONS if option in message]
            assert named, f"{cfg}: {message}"
            answers[f"{type(error).__name__} that names {named[-1]}"] += 1
        except BaseException:
            print(cfg, file=sys.stderr)
            raise
        slowest = max(slowest, time.monotonic() - begin)
    return with_costs(answers, slowest)


if __name__ == "__main__":
    main(fuzz)
