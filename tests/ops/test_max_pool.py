"""The max pooling of ResNet's stem, beside PyTorch's."""

import copy
import pickle
from collections.abc import Callable

import needs
import pytest
import torch
import torch.nn.functional as F
from mmdet.models.backbones import ResNet
from threads import assert_threads_change_no_bit
from torch import Tensor, nn

from sa_mmdet.backbones import AttentionResNet
from sa_mmdet.backbones.max_pool import StemMaxPool
from sa_mmdet.ops import compiled

pytestmark = pytest.mark.skipif(compiled.missing is not None, reason=str(compiled.missing))
SPECIAL = {"finite": [], "not a number": [float("nan")], "infinite": [float("inf"), -float("inf"), float("nan")]}


def layer() -> StemMaxPool:
    return StemMaxPool(3, 2, 1)


@pytest.mark.parametrize("values", SPECIAL.values(), ids=SPECIAL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (2, 3, 5, 7), (1, 2, 8, 6), (3, 2, 1, 9), (1, 4, 33, 1), (2, 8, 60, 83)]
)
def test_it_gives_pytorchs_elements(shape: tuple[int, ...], dtype: torch.dtype, values: list[float]) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape).to(dtype)
    for value in values:
        x.view(-1)[torch.randint(x.numel(), (1 + x.numel() // 9,))] = value
    assert layer().obstacle(x) is None
    torch.testing.assert_close(layer()(x), F.max_pool2d(x, 3, 2, 1), rtol=0, atol=0, equal_nan=True)


def test_only_negative_infinity_stays_what_it_is() -> None:
    x = torch.full((1, 1, 4, 4), -float("inf"))
    assert layer().obstacle(x) is None
    assert torch.equal(layer()(x), x[:, :, :2, :2])


def test_a_cut_out_of_a_map_is_pooled() -> None:
    x = torch.randn(2, 6, 9, 11)[:, ::2, 1:, 2:]
    assert layer().obstacle(x) is None
    assert torch.equal(layer()(x), F.max_pool2d(x, 3, 2, 1))


@pytest.mark.parametrize(
    ("x", "pool", "reason"),
    [
        (torch.ones(1, 1, 4, 4).requires_grad_(), layer(), "there are derivatives"),
        (torch.ones(1, 4, 4), layer(), "a tensor of 3 dimensions on cpu"),
        (torch.ones(1, 1, 4, 4, device="meta"), layer(), "meta"),
        (torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last), layer(), "channels-last"),
        (torch.ones(1, 1, 4, 4, dtype=torch.int32), layer(), "int32"),
        (torch.ones(1, 1, 5, 5), StemMaxPool(3, 2, 1, ceil_mode=True), "options"),
        (torch.ones(1, 1, 5, 5), StemMaxPool(2, 2), "options"),
    ],
    ids=["derivatives", "one image", "no values", "channels-last", "integers", "rounded up", "other size"],
)
def test_everything_else_is_pytorchs(x: Tensor, pool: StemMaxPool, reason: str) -> None:
    obstacle = pool.obstacle(x)
    assert obstacle is not None
    assert reason in obstacle
    plain = nn.MaxPool2d(pool.kernel_size, pool.stride, pool.padding, ceil_mode=pool.ceil_mode)
    found, expected = pool(x), plain(x)
    assert found.shape == expected.shape
    assert x.is_meta or torch.equal(found, expected)
    if x.requires_grad:
        [gradient] = torch.autograd.grad(found.sum(), x)
        assert gradient.sum() == expected.numel()


def test_threads_change_no_bit() -> None:
    assert_threads_change_no_bit(lambda: [layer()(torch.arange(2.0 * 3 * 61 * 200).sin().view(2, 3, 61, 200))])


def test_it_knows_the_shape_of_its_result() -> None:
    for height, width in ((1, 1), (7, 8), (8, 7)):
        found = torch.ops.sa_mmdet_cpu.max_pool(torch.empty(2, 3, height, width, device="meta"))
        assert found.shape == F.max_pool2d(torch.empty(2, 3, height, width), 3, 2, 1).shape


class OtherStem(AttentionResNet):
    """A subclass whose stem pools otherwise."""

    def _make_stem_layer(self, in_channels: int, stem_channels: int) -> None:
        super()._make_stem_layer(in_channels, stem_channels)
        self.maxpool = nn.MaxPool2d(2, 2)


class WithoutPooling(AttentionResNet):
    def _make_stem_layer(self, in_channels: int, stem_channels: int) -> None:
        super()._make_stem_layer(in_channels, stem_channels)
        del self.maxpool


def test_a_subclass_keeps_its_own_stem() -> None:
    x = torch.randn(1, 2, 6, 8)
    assert torch.equal(OtherStem(18, base_channels=8, stem_channels=8).maxpool(x), F.max_pool2d(x, 2, 2))
    assert not hasattr(WithoutPooling(18, base_channels=8, stem_channels=8), "maxpool")


def test_a_frozen_stem_takes_it_while_training_and_copies_do_so_too(monkeypatch: pytest.MonkeyPatch) -> None:
    network = AttentionResNet(18, base_channels=8, stem_channels=8, frozen_stages=0)
    network.train()
    with monkeypatch.context() as change:
        change.setattr(nn.MaxPool2d, "forward", None)
        for copied in (network, copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
            sum(out.sum() for out in copied(torch.randn(2, 3, 64, 64))).backward()
            assert copied.layer1[0].conv1.weight.grad is not None
        with torch.inference_mode():
            network(torch.randn(2, 3, 64, 64))


TRANSFORMS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "vmap": lambda pool, x: torch.func.vmap(pool)(x[None])[0],
    "jvp": lambda pool, x: torch.func.jvp(pool, (x,), (torch.ones_like(x),))[0],
    "compile": lambda pool, x: torch.compile(pool, backend="eager", fullgraph=True)(x),
    "export": lambda pool, x: torch.export.export(pool, (x,)).module()(x),
    "autocast": lambda pool, x: autocast(pool, x),
}


def autocast(pool: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        result: Tensor = pool(x)
    return result


@needs.export
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_transforms_give_the_same(transform: Callable[[nn.Module, Tensor], Tensor]) -> None:
    x = torch.randn(2, 3, 9, 8)
    with torch.no_grad():
        assert torch.equal(transform(layer(), x), F.max_pool2d(x, 3, 2, 1))


@pytest.mark.parametrize("depth", [18, 50])
def test_a_network_with_it_gives_mmdetections_maps(depth: int) -> None:
    options: dict = dict(depth=depth, base_channels=8, stem_channels=8)
    torch.manual_seed(0)
    plain, own = ResNet(**options), AttentionResNet(**options)
    own.load_state_dict(plain.state_dict())
    assert type(own.maxpool) is StemMaxPool
    x = torch.randn(2, 3, 75, 64)
    plain.eval()
    own.eval()
    for one, other in zip(own(x), plain(x), strict=True):  # with derivatives
        torch.testing.assert_close(one, other)
    with torch.no_grad():
        for one, other in zip(own(x), plain(x), strict=True):
            torch.testing.assert_close(one, other)


def test_the_reference_variant_has_pytorchs_pooling() -> None:
    assert type(AttentionResNet(18, implementation="reference").maxpool) is nn.MaxPool2d


def test_hooks_and_options_that_are_set_later_count() -> None:
    network = AttentionResNet(18, base_channels=8, stem_channels=8)
    network.eval()
    sizes = []
    network.maxpool.register_forward_hook(lambda module, inputs, output: sizes.append(output.shape[-2:]))
    with torch.no_grad():
        network(torch.randn(1, 3, 64, 68))
        network.maxpool.ceil_mode = True
        network(torch.randn(1, 3, 64, 68))
    assert sizes == [(16, 17), (17, 18)]


def test_tracers_see_pytorchs_operator() -> None:
    traced = torch.jit.trace(layer(), torch.randn(1, 2, 8, 8))
    assert "max_pool2d" in str(traced.graph)
    exported = torch.fx.symbolic_trace(nn.Sequential(layer()))
    assert "sa_mmdet_cpu" not in exported.code
    x = torch.randn(1, 2, 10, 10)
    assert torch.equal(exported(x), F.max_pool2d(x, 3, 2, 1))
