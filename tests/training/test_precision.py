"""Backbones in half precision, compiled, in channels-last layout and exported, compared with float32 in eager mode."""

import itertools
from pathlib import Path
from typing import Any

import needs
import numpy as np
import pytest
import torch
from detectors import small_retinanet
from mmdet.registry import MODELS
from mmengine.runner import Runner
from torch import Tensor

dynamo = pytest.importorskip("torch._dynamo.testing", reason="torch.compile came with PyTorch 2")

BACKBONES: dict[str, dict[str, Any]] = {
    "SA-18": dict(type="SAResNet", depth=18, groups=8),
    "SA-50": dict(type="SAResNet", depth=50, groups=16),
    "SA-18, PyTorch's operators": dict(type="SAResNet", depth=18, groups=8, implementation="reference"),
    **{
        name: dict(type="AttentionResNet", depth=18, attention=dict(type=kind, **options))
        for name, kind, options in (
            ("SE", "SqueezeExcitation", dict(ratio=4)),
            ("ECA", "EfficientChannelAttention", {}),
            ("SGE", "SpatialGroupEnhance", dict(groups=8)),
            ("CBAM", "CBAM", dict(ratio=4)),
        )
    },
}


BACKBONES["SA behind stages"] = dict(
    type="WithAttention",
    module="ResNet",
    depth=18,
    attention={"layer*": dict(type="ShuffleAttention", groups=8)},
)
# Each is compiled and exported, which takes long; these are like others.
_LONG = ("SA-18, PyTorch's operators", "SA-18", "SE", "ECA", "SGE")


@pytest.fixture(
    params=[pytest.param(name, marks=[pytest.mark.long] * (name in _LONG)) for name in BACKBONES], scope="module"
)
def backbone(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    model = MODELS.build(dict(base_channels=16, norm_eval=True, frozen_stages=-1, **BACKBONES[request.param]))
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
        elif tensor.is_floating_point() and tensor.dim() < 4:
            tensor.normal_(0.3, 0.3)
    model.train()
    return model


def outputs_and_gradients(function: Any, model: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """All outputs, and the gradients of all parameters, each as one vector."""
    model.zero_grad()
    outs = function(x)
    sum(out.float().square().mean() for out in outs).backward()
    return torch.cat([out.detach().float().flatten() for out in outs]), torch.cat(
        [p.grad.flatten() for p in model.parameters()]
    )


def relative(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).norm() / expected.norm()).item()


def test_channels_last(backbone: Any) -> None:
    x = torch.randn(2, 3, 64, 96)
    expected = outputs_and_gradients(backbone, backbone, x)
    try:
        backbone.to(memory_format=torch.channels_last)
        actual = outputs_and_gradients(backbone, backbone, x.to(memory_format=torch.channels_last))
    finally:
        backbone.to(memory_format=torch.contiguous_format)
    assert all(relative(one, other) < 1e-5 for one, other in zip(actual, expected, strict=True))


@pytest.mark.parametrize("dtype", needs.HALF, ids=str)
def test_autocast(backbone: Any, dtype: torch.dtype) -> None:
    tolerance = {torch.bfloat16: 0.03, torch.float16: 0.006}[dtype]
    x = torch.randn(2, 3, 64, 96)
    expected = outputs_and_gradients(backbone, backbone, x)
    with torch.autocast("cpu", dtype=dtype):
        actual = outputs_and_gradients(backbone, backbone, x)
    assert all(0 < relative(one, other) < tolerance for one, other in zip(actual, expected, strict=True))


@pytest.mark.long
@pytest.mark.skipif(torch.__version__.startswith("2.4."), reason="2.4 returns two of the four maps of any ResNet")
def test_one_graph_for_all_sizes(backbone: Any) -> None:
    counter = dynamo.CompileCounter()
    torch._dynamo.reset()
    compiled = torch.compile(backbone, backend=counter, fullgraph=True, dynamic=True)
    for height, width in ((64, 96), (96, 64), (128, 160)):
        x = torch.randn(2, 3, height, width)
        for actual, expected in zip(compiled(x), backbone(x), strict=True):
            torch.testing.assert_close(actual, expected)
    assert counter.frame_count == 1


@pytest.mark.skipif(not hasattr(getattr(torch, "export", None), "Dim"), reason="torch.export.Dim came with PyTorch 2.2")
def test_exported(backbone: Any) -> None:
    height, width = (torch.export.Dim(name, min=2, max=64) for name in "hw")  # PyTorch 2.4 needs the maximum
    dynamic = {0: torch.export.Dim("n"), 2: 32 * height, 3: 32 * width}
    exported = torch.export.export(backbone, (torch.randn(2, 3, 64, 96),), dynamic_shapes=(dynamic,)).module()
    x = torch.randn(3, 3, 96, 64)
    for actual, expected in zip(exported(x), backbone(x), strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.long
def test_compiled_to_machine_code() -> None:
    torch.manual_seed(0)
    model = MODELS.build(dict(type="SAResNet", depth=50, frozen_stages=-1))
    model.train()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    for height, width in ((64, 96), (96, 64)):
        x = torch.randn(2, 3, height, width)
        actual, expected = (outputs_and_gradients(function, model, x) for function in (compiled, model))
        assert all(relative(one, other) < 1e-4 for one, other in zip(actual, expected, strict=True))


@pytest.mark.long
@pytest.mark.parametrize("dtype", needs.HALF, ids=str)
def test_two_hundred_steps_on_real_images(coco128: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    cfg = small_retinanet(coco128, tmp_path)
    cfg.train_dataloader.batch_size = 2
    # A quarter of the channels: convolutions in float16 are so slow on CPUs that ResNet-18's own take 31 minutes.
    cfg.model.backbone.update(base_channels=16, groups=8)
    cfg.model.neck.in_channels = [16, 32, 64, 128]
    cfg.train_dataloader.dataset.pipeline[2].scale = (96, 80)
    # PyTorch (2.13 and 2.15) leaves the weight gradient of a strided convolution over a map one position wide, here the
    # last map of the neck, uninitialised in bfloat16 on CPUs: it is NaN sooner or later, without this package, too.
    cfg.model.data_preprocessor.pad_size_divisor = 128
    device = "cuda" if torch.cuda.is_available() else "cpu"
    runner = Runner.from_cfg(cfg)
    model, loader = runner.model, itertools.cycle(runner.build_dataloader(runner.cfg.train_dataloader))
    model.init_weights()
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler(device, enabled=dtype == torch.float16)
    losses = []
    for data in itertools.islice(loader, 200):
        with torch.autocast(device, dtype=dtype):
            loss, _ = model.parse_losses(model(**model.data_preprocessor(data, True), mode="loss"))
        losses.append(loss.item())
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    assert np.isfinite(losses).all()
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert np.mean(losses[-20:]) < 0.8 * np.mean(losses[:20])
