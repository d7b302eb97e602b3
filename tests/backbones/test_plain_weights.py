"""Weights of a plain ResNet in a network with attention, by every way in which weights arrive."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmdet.apis import DetInferencer
from mmdet.models import ResNet
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.runner import load_checkpoint
from places import DEMO
from torch import Tensor, nn

# Half of the channels: the weights need a quarter of the time.
SMALL: dict[str, Any] = dict(base_channels=32, stem_channels=32)
ATTENTION = {
    "SA": dict(type="ShuffleAttention", groups=16),
    "SE": dict(type="SqueezeExcitation"),
    "ECA": dict(type="EfficientChannelAttention"),
    "SGE": dict(type="SpatialGroupEnhance", groups=32),
    "CBAM": dict(type="CBAM", ratio=8),
}
Load = Callable[[Any, dict[str, Tensor], Path], Any]


def trained(depth: int = 18, **options: Any) -> Any:
    """A plain ResNet with random values for all tensors, the norms' statistics included."""
    model: Any = ResNet(depth, **SMALL, **options).double()
    for name, tensor in model.state_dict().items():
        if tensor.dim() == 4:
            nn.init.kaiming_normal_(tensor)
        elif name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
        elif tensor.is_floating_point():
            tensor.normal_(0, 0.2)
    return model


def built(cfg: dict[str, Any]) -> Any:
    return MODELS.build(cfg).double()


def by_state_dict(cfg: Any, state: dict[str, Tensor], folder: Path) -> Any:
    model = built(cfg)
    model.init_weights()
    model.load_state_dict(state, strict=True)
    return model


def by_load_checkpoint(cfg: Any, state: dict[str, Tensor], folder: Path) -> Any:
    model = built(cfg)
    torch.save(dict(state_dict={f"module.{key}": value for key, value in state.items()}), folder / "plain.pth")
    load_checkpoint(model, str(folder / "plain.pth"), strict=True)
    return model


def by_pretrained(cfg: Any, state: dict[str, Tensor], folder: Path) -> Any:
    torch.save(state, folder / "plain.pth")
    model = built({**cfg, "init_cfg": dict(type="Pretrained", checkpoint=str(folder / "plain.pth"))})
    model.init_weights()
    return model


def by_a_detectors_backbone(cfg: Any, state: dict[str, Tensor], folder: Path) -> Any:
    detector = {f"backbone.{key}": value for key, value in state.items()} | {"rpn_head.x": torch.zeros(1)}
    torch.save(dict(state_dict=detector), folder / "plain.pth")
    init_cfg = dict(type="Pretrained", checkpoint=str(folder / "plain.pth"), prefix="backbone.")
    model = built({**cfg, "init_cfg": init_cfg})
    model.init_weights()
    return model


def assert_same_function(model: Any, plain: Any) -> None:
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    model.eval(), plain.eval()
    for ours, theirs in zip(model(x), plain(x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("attention", "load"),
    [
        *((attention, by_pretrained) for attention in ATTENTION),
        *(("SA", load) for load in (by_state_dict, by_load_checkpoint, by_a_detectors_backbone)),
    ],
)
def test_any_way_of_loading_keeps_the_plain_function(attention: str, load: Load, tmp_path: Path) -> None:
    plain = trained()
    state = plain.state_dict()
    before = {key: value.clone() for key, value in state.items()}
    model = load(dict(type="AttentionResNet", **SMALL, depth=18, attention=ATTENTION[attention]), state, tmp_path)
    assert_same_function(model, plain)
    assert all(torch.equal(state[key], before[key]) for key in before)  # the user's tensors are the user's
    # What has been loaded is now the network's own: it goes out and in again as it is.
    again = built(dict(type="AttentionResNet", **SMALL, depth=18, attention=ATTENTION[attention]))
    again.load_state_dict(model.state_dict())
    assert_same_function(again, plain)


def test_a_plain_detectors_checkpoint_gives_its_own_detections(tmp_path: Path) -> None:
    cfg = Config.fromfile(DEMO)
    cfg.model.test_cfg.rcnn.score_thr = 0.0
    cfg.model.backbone = dict(type="ResNet", **SMALL, depth=18)
    detector: Any = MODELS.build(cfg.model)
    detector.backbone.load_state_dict(trained().state_dict())
    nn.init.normal_(detector.roi_head.bbox_head.fc_cls.weight, std=5)  # an untrained head's scores hardly differ
    torch.save(dict(state_dict=detector.state_dict()), tmp_path / "plain.pth")
    image = np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8)

    def detections() -> Any:
        cfg.dump(tmp_path / "config.py")
        files = str(tmp_path / "config.py"), str(tmp_path / "plain.pth")
        return DetInferencer(*files, device="cpu", show_progress=False)(image, no_save_pred=True)["predictions"][0]

    theirs = detections()
    assert len(theirs["labels"]) > 5
    for attention in ATTENTION.values():
        cfg.model.backbone = dict(type="AttentionResNet", **SMALL, depth=18, attention=attention)
        ours = detections()
        assert ours["labels"] == theirs["labels"]
        np.testing.assert_allclose(ours["scores"], theirs["scores"], atol=1e-5)
        np.testing.assert_allclose(ours["bboxes"], theirs["bboxes"], atol=1e-5 * 128)


@pytest.mark.parametrize(
    "options",
    [
        dict(depth=50, deep_stem=True, avg_down=True),
        dict(depth=50, style="caffe", frozen_stages=1),
        dict(depth=50, num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 1), out_indices=(0, 1, 2)),
    ],
    ids=str,
)
def test_only_the_type_is_changed(options: dict[str, Any], tmp_path: Path) -> None:
    plain = trained(**options)
    model = by_pretrained(dict(type="SAResNet", **SMALL, **options), plain.state_dict(), tmp_path)
    assert_same_function(model, plain)


def test_half_precision_of_a_file_is_not_that_of_the_network(tmp_path: Path) -> None:
    plain = trained().half()
    model = by_pretrained(dict(type="SAResNet", **SMALL, depth=18, groups=16), plain.state_dict(), tmp_path)
    assert_same_function(model, plain.double())


def test_some_stages_have_attention(tmp_path: Path) -> None:
    plain = trained(50)
    model = by_state_dict(
        dict(type="SAResNet", **SMALL, depth=50, stage_with_attention=(1, 0, 1, 1)), plain.state_dict(), tmp_path
    )
    assert not hasattr(model.layer2[0], "sa")
    assert_same_function(model, plain)


def test_the_log_says_in_one_line_what_was_done(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    logger = MMLogger.get_instance("plain_weights", log_level="INFO")
    logger.addHandler(caplog.handler)
    by_pretrained(dict(type="SAResNet", **SMALL, depth=18, groups=16), trained().state_dict(), tmp_path)
    said = [record.getMessage() for record in caplog.records if "weights of a plain ResNet" in record.getMessage()]
    assert set(said) == {
        "SAResNet: weights of a plain ResNet; the 8 new attention layers start without changing its function"
    }


def test_weights_with_attention_are_left_as_they_are(tmp_path: Path) -> None:
    cfg = dict(type="SAResNet", **SMALL, depth=18, groups=16)
    model = built(cfg)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5)
    other = by_pretrained(cfg, model.state_dict(), tmp_path)
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in model.state_dict().items())


def without(state: dict[str, Tensor], *parts: str) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if not any(part in key for part in parts)}


def test_what_is_neither_is_refused_by_name(tmp_path: Path) -> None:
    sa, se = dict(type="SAResNet", **SMALL, depth=18, groups=16), dict(type="AttentionResNet", **SMALL, depth=18)
    se["attention"] = ATTENTION["SE"]
    mixture = without(built(sa).state_dict(), "layer3.1.sa.")
    refused = [
        (sa, mixture, r"hold a part of its attention \(layer1\.0\.sa\.cweight, .*lack layer3\.1\.sa\.cweight"),
        (sa, built(se).state_dict(), r"do not fit SAResNet: they hold another attention: layer1\.0\.se\.fc\.0\.weight"),
        (
            sa,
            built({**sa, "groups": 8}).state_dict(),
            r"layer1\.0\.sa\.cweight has the shape \(1, 2, 1, 1\) in the checkpoint.*: groups=8",
        ),
        (sa, without(trained().state_dict(), "layer2.0.bn2.weight"), r"lack layer2\.0\.bn2\.weight: the exact start"),
    ]
    for cfg, state, message in refused:
        for load in (by_state_dict, by_pretrained):
            with pytest.raises(RuntimeError, match=message):
                load(cfg, state, tmp_path)


def test_other_weights_load_as_they_do_in_mmdetection(tmp_path: Path) -> None:
    model = built(dict(type="SAResNet", **SMALL, depth=18, groups=16))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.load_state_dict({"conv1.weight": torch.ones_like(model.conv1.weight)}, strict=False)
    after = model.state_dict()
    assert [key for key in before if not torch.equal(before[key], after[key])] == ["conv1.weight"]
    with pytest.raises(RuntimeError, match="size mismatch"):
        model.load_state_dict(trained(50).state_dict(), strict=False)


def test_attention_without_an_exact_start_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    group_norm: dict[str, Any] = dict(norm_cfg=dict(type="GN", num_groups=2))
    cases: list[tuple[dict[str, Any], dict[str, Any]]] = [
        (dict(stage_attention=dict(type="BAM")), {}),
        (dict(attention=dict(type="SqueezeExcitation", gate="tanh")), {}),
        (dict(attention=ATTENTION["SA"], **group_norm), group_norm),
    ]
    for options, plain in cases:
        with caplog.at_level("WARNING"):
            caplog.clear()
            MMLogger.get_current_instance().addHandler(caplog.handler)
            cfg = dict(type="AttentionResNet", **SMALL, depth=18, **options)
            model = by_pretrained(cfg, trained(**plain).state_dict(), tmp_path)
        assert "whose function the first step does not compute" in caplog.text
        assert model.conv1.weight.isfinite().all()


@pytest.mark.parametrize("kind", ["SAResNet", "ResNet"])
@pytest.mark.parametrize("initialiser", ["ResNetPretrained", "Pretrained"])
def test_deformable_convolutions_keep_what_was_loaded(kind: str, initialiser: str, tmp_path: Path) -> None:
    plain = trained(50)
    torch.save(plain.state_dict(), tmp_path / "plain.pth")
    deformable = dict(dcn=dict(type="DCNv2", deform_groups=1), stage_with_dcn=(False, True, False, False))
    init_cfg = dict(type=initialiser, checkpoint=str(tmp_path / "plain.pth"))
    model = built(dict(type=kind, **SMALL, depth=50, init_cfg=init_cfg, **deformable))
    model.init_weights()
    for name, value in plain.state_dict().items():
        if ".conv2.weight" in name:
            assert torch.equal(model.state_dict()[name], value), name
    assert not model.layer2[0].conv2.conv_offset.weight.any()


def test_new_norms_of_attention_learn_their_statistics(tmp_path: Path) -> None:
    for attention in (dict(attention=dict(type="CBAM", ratio=8)), dict(stage_attention=dict(type="BAM"))):
        cfg = dict(type="AttentionResNet", **SMALL, depth=18, norm_eval=True, frozen_stages=1, **attention)
        model = by_pretrained(cfg, trained().state_dict(), tmp_path)
        before = {key: value.clone() for key, value in model.state_dict().items()}
        model.train()
        for _ in range(2):
            model(torch.randn(1, 3, 64, 64, dtype=torch.float64))
        learnt = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
        own = {key for key in before if "running_" in key or "num_batches" in key}
        own = {key for key in own if ("cbam" in key or "bam" in key) and not key.startswith("layer1.")}
        assert learnt == own
        model.eval()
        assert not any(module.training for module in model.modules())


def test_bams_vectors_are_normalised_by_what_was_seen() -> None:
    torch.manual_seed(0)
    model = MODELS.build(dict(type="BAM", in_channels=64))
    norm = model.channel_att.gate_c.gate_c_bn_1
    seen = []
    for _ in range(400):
        x = 3 + 2 * torch.randn(1, norm.num_features)
        seen.append(x)
        normalised = norm(x)
    vectors = torch.cat(seen)
    assert (norm.running_mean - vectors.mean(0)).abs().max() < 2
    assert 0.4 < (norm.running_var / vectors.var(0)).mean() < 2
    assert not torch.equal(normalised.abs(), torch.ones_like(normalised))
    (norm(x) + norm(x)).sum().backward()  # two passes before the backward pass
    many = torch.randn(16, norm.num_features)
    expected = (many - many.mean(0)) / (many.var(0, unbiased=False) + norm.eps).sqrt()
    torch.testing.assert_close(norm(many), expected, rtol=1e-5, atol=1e-5)
