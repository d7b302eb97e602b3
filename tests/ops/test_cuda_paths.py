"""The operator as if on a GPU: CPU tensors go to Triton's kernels, which run in Triton's interpreter."""

import functools
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import needs
import pytest
import torch
from mmdet.registry import MODELS
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from sa_mmdet import ops
from sa_mmdet.ops import backends, custom_op, reference

pytestmark = [
    needs.triton,
    needs.triton_interpreter(),
    pytest.mark.filterwarnings("error:a fused kernel fails"),
]
INTERPRETED = bool(os.environ.get("TRITON_INTERPRET"))
here = pytest.mark.skipif(not INTERPRETED, reason="runs in a process of its own, with Triton's interpreter")
LAYOUTS = [torch.contiguous_format, torch.channels_last]
shuffle_attention: Any = ops.shuffle_attention_residual


@pytest.mark.skipif(INTERPRETED, reason="the tests below run here")
@pytest.mark.parametrize(
    "which",
    ["dispatch or autocast or backbone or (compile and channels_last)", pytest.param("", marks=pytest.mark.long)],
    ids=["some", "all"],
)
def test_as_if_on_a_gpu(which: str) -> None:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-k", which, __file__]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-5000:]
    assert " passed" in result.stdout


@pytest.fixture(autouse=True)
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Send CPU tensors to Triton's kernels, and list the calls."""
    found: list[str] = []
    if not INTERPRETED:
        return found
    monkeypatch.setattr(backends, "by_triton", lambda x: True)
    for name in ("forward", "backward"):
        kernel = getattr(backends.triton, name)

        def counted(*arguments: Any, name: str = name, kernel: Any = kernel) -> Any:
            found.append(name)
            return kernel(*arguments)

        monkeypatch.setattr(backends.triton, name, counted)
    return found


def tensors(size: tuple[int, ...] = (2, 8, 3, 5), layout: torch.memory_format = LAYOUTS[0]) -> list[Tensor]:
    """x, identity, scale, shift and the six parameters, for two groups."""
    maps = [torch.randn(size).contiguous(memory_format=layout) for _ in range(2)]
    vectors = [torch.randn(n) for n in [size[1]] * 2 + [size[1] // 4] * 6]
    return [tensor.requires_grad_() for tensor in (*maps, *vectors)]


def step(function: Callable[[], Tensor], leaves: Sequence[Tensor]) -> list[Tensor]:
    for leaf in leaves:
        leaf.grad = None
    out = function()
    (out.float() * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum().backward()
    return [out.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def assert_close(found: Sequence[Tensor], wanted: Sequence[Tensor], tolerance: float = 3e-5) -> None:
    for one, other in zip(found, wanted, strict=True):
        bound = tolerance * max(1.0, other.abs().max().item())
        torch.testing.assert_close(one.float(), other.float(), rtol=tolerance, atol=bound)


@here
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_dispatch_autograd_and_layout(layout: torch.memory_format, calls: list[str]) -> None:
    leaves = tensors(layout=layout)
    found = step(lambda: shuffle_attention(*leaves, 2, implementation="fused"), leaves)
    assert calls == ["forward", "backward"]
    assert_close(found, step(lambda: shuffle_attention(*leaves, 2, implementation="reference"), leaves))
    assert all(tensor.is_contiguous(memory_format=layout) for tensor in found[:3])


@here
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("size", [(2, 8, 3, 5), (1, 8, 1, 1)], ids=str)
def test_either_backend_takes_what_the_other_has_saved(size: tuple[int, ...], layout: torch.memory_format) -> None:
    x, identity, scale, shift, *rows = (tensor.detach() for tensor in tensors(size, layout))
    arguments = (scale, shift, torch.stack(rows), 2, 1e-5)
    saved = [kernels.forward(x, identity, *arguments) for kernels in (backends.triton, reference)]
    assert_close(saved[0], saved[1])
    gradient = torch.randn(size).contiguous(memory_format=layout)
    out = saved[0][0]
    gradients = [
        list(kernels.backward(gradient, x, out, *statistics, *arguments))
        for kernels, (_, *statistics) in zip((backends.triton, reference), reversed(saved), strict=True)
    ]
    assert_close(gradients[0], gradients[1])


def _unusual_strides() -> dict[str, Tensor]:
    base = torch.randn(3, 12, 4, 6)
    last = base.contiguous(memory_format=torch.channels_last)
    return {
        "contiguous": base[:2, :8].contiguous(),
        "channels_last": last[:2, :8].contiguous(memory_format=torch.channels_last),
        "every second column": base[:2, :8, :, ::2],
        "a slice of channels": base[:2, 4:],
        "a slice of channels, channels_last": last[:2, 4:],
        "a slice of images": base[2:, :8],
        "a crop, channels_last": last[:2, :8, 1:3, 2:5],
        "expanded images": base[:1, :8, :2].expand(2, -1, -1, -1),
        "expanded positions": base[:2, :8, :1, :1].expand(-1, -1, 2, 3),
        "transposed": base[:2, :8, :2].transpose(2, 3),
        "one image": last[:1, :8],
        "one position": base[:2, :8, :1, :1],
        "one position, channels_last": last[:2, :8, :1, :1].contiguous(memory_format=torch.channels_last),
        "one image and position": torch.randn(16).as_strided((1, 8, 1, 1), (7, 1, 5, 3)),
        "one row": base[:2, :8, :1],
        "one column, channels_last": last[:2, :8, :, :1],
        "no image": base[:0, :8],
        "no position": base[:2, :8, :, :0],
    }


@here
@pytest.mark.parametrize("name", list(_unusual_strides()))
def test_the_fake_form_gives_the_strides_of_the_real_one(name: str) -> None:
    x = _unusual_strides()[name]
    parameters, gradient = torch.randn(6, 2), torch.randn(x.shape).transpose(2, 3).contiguous().transpose(2, 3)
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(tensor) for tensor in (x, parameters, gradient)]

    def run(x: Tensor, parameters: Tensor, gradient: Tensor) -> list[Tensor]:
        one = x.new_ones(x.shape[1])
        results = custom_op.fused(x, x, one, one, parameters, 2, 1e-5)
        gradients = custom_op.fused_backward(gradient, x, *results, one, one, parameters, 2, 1e-5)
        return [*results, *gradients]

    real = run(x, parameters, gradient)
    with mode:
        fake = run(*fakes)
    for one, other in zip(fake, real, strict=True):
        assert (one.shape, one.stride(), one.dtype) == (other.shape, other.stride(), other.dtype)
    one = x.new_ones(x.shape[1])
    expected = shuffle_attention(x, x, one, one, *parameters, 2, implementation="reference")
    torch.testing.assert_close(real[0], expected, rtol=3e-5, atol=3e-5)


@here
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_the_operator_keeps_pytorchs_rules(layout: torch.memory_format) -> None:
    x, identity, scale, shift, *rows = tensors(layout=layout)
    stacked = torch.stack(rows).detach().requires_grad_()
    torch.library.opcheck(torch.ops.sa_mmdet.shuffle_attention.default, (x, identity, scale, shift, stacked, 2, 1e-5))


@here
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast(dtype: torch.dtype, layout: torch.memory_format, calls: list[str]) -> None:
    leaves = tensors(layout=layout)
    with torch.autocast("cpu", dtype=dtype):
        found = step(lambda: shuffle_attention(leaves[0].to(dtype), *leaves[1:], 2), leaves)
    assert calls == ["forward", "backward"]
    assert found[0].dtype == dtype
    wanted = step(lambda: shuffle_attention(*leaves, 2, implementation="reference"), leaves)
    assert_close(found, wanted, 8 * torch.finfo(dtype).eps)


@here
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing(reentrant: bool, calls: list[str]) -> None:
    leaves = tensors()
    wanted = step(lambda: shuffle_attention(*leaves, 2), leaves)
    del calls[:]

    def checkpointed() -> Tensor:
        return checkpoint(lambda *t: shuffle_attention(*t, 2), *leaves, use_reentrant=reentrant)

    for one, other in zip(step(checkpointed, leaves), wanted, strict=True):
        assert torch.equal(one, other)
    assert calls == ["forward", "forward", "backward"]


@here
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_compile(layout: torch.memory_format, calls: list[str]) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(lambda *t: shuffle_attention(*t, 2), backend="aot_eager", fullgraph=True, dynamic=True)
    for size in ((2, 8, 3, 5), (3, 8, 4, 3)):
        leaves = tensors(size, layout)
        del calls[:]
        found = step(functools.partial(compiled, *leaves), leaves)
        assert calls == ["forward", "backward"]
        wanted = step(functools.partial(shuffle_attention, *leaves, 2), leaves)
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other)
            assert one.stride() == other.stride()
    torch._dynamo.reset()


@here
def test_second_derivatives_leave_the_kernels(calls: list[str]) -> None:
    results = []
    for implementation in ("auto", "reference"):
        torch.manual_seed(0)
        leaves = tensors()
        out = shuffle_attention(*leaves, 2, implementation=implementation)
        first = torch.autograd.grad(out.square().sum(), leaves, create_graph=True)
        results.append(list(torch.autograd.grad(torch.stack([g.square().sum() for g in first]).sum(), leaves)))
    assert calls == ["forward", "backward"][: len(calls)]
    assert_close(results[0], results[1], 1e-3)


def first_map(model: Any, x: Tensor) -> Tensor:
    return model(x)[0]


@here
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_backbone(layout: torch.memory_format, calls: list[str]) -> None:
    cfg: dict[str, Any] = dict(type="SAResNet", depth=50, base_channels=4, groups=4, frozen_stages=-1, num_stages=1)
    cfg |= dict(strides=(1,), dilations=(1,), out_indices=(0,))
    models: list[Any] = [MODELS.build({**cfg, "implementation": name}) for name in ("auto", "reference")]
    models[1].load_state_dict(models[0].state_dict())
    x = torch.randn(2, 3, 16, 16).contiguous(memory_format=layout)
    results = []
    for model in models:
        model.to(memory_format=layout).train()
        results.append(step(functools.partial(first_map, model, x), list(model.parameters())))
    assert calls == ["forward"] * 3 + ["backward"] * 3
    assert_close(results[0], results[1], 1e-4)
