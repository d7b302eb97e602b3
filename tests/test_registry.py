"""Names of this package that other code registers, too: each keeps its own, whoever comes first."""

import subprocess
import sys
from typing import Any

import pytest
from mmdet.registry import MODELS
from mmengine.registry import HOOKS, WEIGHT_INITIALIZERS
from mmengine.registry import MODELS as ROOT

from sa_mmdet.attention import CBAM, attention_types, label_of
from sa_mmdet.backbones import SAResNet
from sa_mmdet.registry import name_of

NAMES = ["CBAM", "ShuffleAttention", "SAResNet", "SeedSteps", "ResNetPretrained"]
CODE = """
import sys
from mmdet import registry as mmdet
from mmengine import registry as mmengine
from mmengine.registry import init_default_scope
from torch import nn

class Mine(nn.Module):
    def __init__(self, in_channels=1):
        super().__init__()

def register():
    registry = dict(mmdet=mmdet, mmengine=mmengine)[sys.argv[2]]
    for name in ("CBAM", "ShuffleAttention", "SAResNet"):
        registry.MODELS.register_module(name=name, module=Mine)
    registry.HOOKS.register_module(name="SeedSteps")(Mine)
    registry.WEIGHT_INITIALIZERS.register_module(name="ResNetPretrained", module=Mine)

if sys.argv[1] == "before":
    register()
import sa_mmdet
if sys.argv[1] == "after":
    register()
init_default_scope("mmdet")

def attention(name):
    backbone = mmdet.MODELS.build(dict(type="AttentionResNet", depth=18, attention=dict(type=name)))
    block = backbone.layer1[0]
    return type(getattr(block, block.after_conv2_plugin_names[0]))

assert attention("CBAM") is Mine
assert attention("sa_mmdet.CBAM") is sa_mmdet.attention.CBAM
assert attention("SqueezeExcitation") is attention("sa_mmdet.SqueezeExcitation") is sa_mmdet.attention.SqueezeExcitation
assert type(mmdet.MODELS.build(dict(type="SAResNet"))) is Mine
backbone = mmdet.MODELS.build(dict(type="sa_mmdet.SAResNet", depth=50))
assert type(backbone) is sa_mmdet.backbones.SAResNet
assert type(backbone.layer1[0].sa) is sa_mmdet.attention.ShuffleAttention
assert mmdet.HOOKS.get("SeedSteps") is mmdet.WEIGHT_INITIALIZERS.get("ResNetPretrained") is Mine
assert mmdet.WEIGHT_INITIALIZERS.get("sa_mmdet.ResNetPretrained") is sa_mmdet.backbones.ResNetPretrained
types = sa_mmdet.attention.attention_types()
assert types["sa_mmdet.CBAM"] is sa_mmdet.attention.CBAM and "CBAM" not in types
"""


@pytest.mark.parametrize("order", ["before", pytest.param("after", marks=pytest.mark.long)])
@pytest.mark.parametrize("registry", ["mmengine", pytest.param("mmdet", marks=pytest.mark.long)])
def test_each_keeps_its_own(order: str, registry: str) -> None:
    command = [sys.executable, "-c", CODE, order, registry]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    for name in NAMES:
        line = f"type={name!r} builds __main__.Mine, which is registered under that name; that of sa_mmdet is "
        assert f"{line}type='sa_mmdet.{name}'" in result.stderr + result.stdout
        assert (result.stderr + result.stdout).count(line) == 1


def test_free_names_need_no_scope() -> None:
    assert (name_of(CBAM), name_of(SAResNet), name_of(dict)) == ("CBAM", "SAResNet", "dict")
    assert attention_types()["CBAM"] is CBAM
    assert label_of("sa_mmdet.CBAM") == label_of(CBAM) == "CBAM"
    for registry, name in ((ROOT, "CBAM"), (MODELS, "SAResNet"), (HOOKS, "CheckDataset")):
        found: Any = registry.get(name)
        assert found is registry.get(f"sa_mmdet.{name}")
    assert WEIGHT_INITIALIZERS.get("ResNetPretrained").__module__.startswith("sa_mmdet.")


def test_other_names_are_still_registered_once() -> None:
    with pytest.raises(KeyError, match="ResNet is already registered"):
        MODELS.register_module(name="ResNet", module=dict)
