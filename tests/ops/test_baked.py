"""Baked shuffle attention with the end of its block, beside its formula."""

from typing import Any

import pytest
import torch
from mmcv.cnn import fuse_conv_bn
from mmdet.models.backbones import ResNet
from threads import assert_threads_change_no_bit
from torch import Tensor, nn

from sa_mmdet.attention import BakedShuffleAttention
from sa_mmdet.backbones import AttentionResNet, BakedSAResNet
from sa_mmdet.backbones.bottleneck import obstacles_to_fusion
from sa_mmdet.ops import compiled
from sa_mmdet.ops.block_end import BlockEnd
from sa_mmdet.ops.eval_norm import NO_NORM

pytestmark = pytest.mark.skipif(compiled.missing is not None, reason=str(compiled.missing))
EPS = 1e-5


def inputs(shape: tuple[int, ...], dtype: torch.dtype = torch.float64, both: bool = False) -> list[Tensor]:
    """Two maps and three vectors, of which one of the first two is zero in each channel unless ``both`` is set."""
    torch.manual_seed(0)
    maps = [torch.randn(shape, dtype=dtype) + 0.3 for _ in range(2)]
    vectors = [torch.randn(shape[1], dtype=dtype) for _ in range(3)]
    if not both:
        spatial = torch.arange(shape[1]) % 3 == 0
        vectors[0][spatial], vectors[1][~spatial] = 0, 0
    return [*maps, *vectors]


def formula(x: Tensor, identity: Tensor, weight: Tensor, norm_weight: Tensor, norm_bias: Tensor) -> Tensor:
    x, identity, weight, norm_weight, norm_bias = (t.double() for t in (x, identity, weight, norm_weight, norm_bias))
    mean, variance = x.mean((2, 3), keepdim=True), x.var((2, 3), keepdim=True, unbiased=False)
    weight, norm_weight, norm_bias = (vector[:, None, None] for vector in (weight, norm_weight, norm_bias))
    logit = norm_weight * (x - mean) / (variance + EPS) ** 0.5 + norm_bias + weight * mean
    return (identity + x / (1 + (-logit).exp())).clamp(min=0)


def fused(x: Tensor, identity: Tensor, weight: Tensor, norm_weight: Tensor, norm_bias: Tensor) -> Tensor:
    return BlockEnd(x, identity, NO_NORM).baked(weight, norm_weight, norm_bias, EPS)


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("shape", [(2, 12, 7, 9), (1, 6, 1, 1), (1, 3, 65, 33), (3, 4, 1, 5)], ids=str)
def test_the_formula(shape: tuple[int, ...], both: bool) -> None:
    tensors = inputs(shape, both=both)
    torch.testing.assert_close(fused(*tensors), formula(*tensors), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)], ids=str
)
def test_other_dtypes_and_layouts(dtype: torch.dtype, tolerance: float) -> None:
    tensors = inputs((2, 12, 20, 30), dtype)
    expected = formula(*tensors)
    for layout in (torch.contiguous_format, torch.channels_last):
        maps = [t.contiguous(memory_format=layout) for t in tensors[:2]]
        out = fused(*maps, *tensors[2:])
        assert out.dtype == dtype
        torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)


def test_the_number_of_threads_does_not_change_a_bit() -> None:
    tensors = inputs((2, 64, 40, 30), torch.float32)
    assert_threads_change_no_bit(lambda: [fused(*tensors)])


def test_vectors_and_maps_of_other_sizes_are_refused() -> None:
    x, identity, weight, norm_weight, norm_bias = inputs((1, 6, 4, 4))
    with pytest.raises(RuntimeError, match="a vector has 5 elements for 6 channels"):
        fused(x, identity, weight[:5], norm_weight, norm_bias)
    with pytest.raises(RuntimeError):
        fused(x, identity[:, :, :3], weight, norm_weight, norm_bias)


def random_(network: nn.Module) -> Any:
    for name, tensor in network.named_parameters():
        if tensor.dim() == 1:
            nn.init.uniform_(tensor, 0.2, 0.6)
        elif ".sa." in name:
            nn.init.normal_(tensor)
    return network.double()


def by_layers(network: Any, x: Tensor) -> tuple[Tensor, ...]:
    """The outputs that MMDetection's own blocks compute."""
    for block in network.modules():
        if hasattr(block, "implementation"):
            block.implementation = "reference"
    found = network(x)
    for block in network.modules():
        if hasattr(block, "implementation"):
            block.implementation = "auto"
    return found


def test_a_baked_network_is_fused_where_no_derivatives_are_needed() -> None:
    network = random_(BakedSAResNet(50))
    x = torch.randn(2, 3, 64, 96, dtype=torch.double)
    assert set(obstacles_to_fusion(network).values()) == {
        "the operator for the baked form has no derivatives: use torch.no_grad()"
    }
    trained = network(x)
    assert all(level.requires_grad for level in trained)
    with torch.no_grad():
        assert set(obstacles_to_fusion(network).values()) == {None}
        for one, other, third in zip(network(x), by_layers(network, x), trained, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(third.detach(), other, rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        network.layer1[0].sa.norm.register_forward_hook(lambda module, args, out: out * 0)
        assert obstacles_to_fusion(network)["layer1.0"] == "norm has hooks"
        assert not torch.equal(network(x)[0], trained[0])


def test_gradients_pass_a_baked_network_whose_own_parameters_have_none() -> None:
    network = random_(BakedSAResNet(50)).requires_grad_(False)
    x = torch.randn(1, 3, 64, 64, dtype=torch.double, requires_grad=True)
    [grad] = torch.autograd.grad(network(x)[-1].square().sum(), x)
    [expected] = torch.autograd.grad(by_layers(network, x)[-1].square().sum(), x)
    torch.testing.assert_close(grad, expected, rtol=1e-9, atol=1e-9)


def test_folded_networks_without_attention() -> None:
    network: Any = random_(AttentionResNet(50, attention=None))
    plain: Any = ResNet(50).double()
    plain.load_state_dict(network.state_dict())
    network.train(False)
    plain.train(False)
    fuse_conv_bn(network)
    x = torch.randn(1, 3, 64, 64, dtype=torch.double, requires_grad=True)
    assert set(obstacles_to_fusion(network).values()) == {None}
    ours, theirs = network(x), plain(x)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    [grad] = torch.autograd.grad(ours[-1].square().sum(), x)
    [expected] = torch.autograd.grad(theirs[-1].square().sum(), x)
    torch.testing.assert_close(grad, expected, rtol=1e-8, atol=1e-8)


def test_a_baked_layer_behind_a_norm_is_not_fused() -> None:
    network: Any = AttentionResNet(50, attention=dict(type=BakedShuffleAttention))
    network.train(False)
    with torch.no_grad():
        assert set(obstacles_to_fusion(network).values()) == {"bn3 is not merged into its convolution"}
