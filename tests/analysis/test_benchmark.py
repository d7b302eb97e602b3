import json
from pathlib import Path
from typing import Any

import needs
import pytest
import reference
import torch
from mmdet.models.backbones import ResNet
from places import Tool
from torch import nn

from sa_mmdet.analysis.benchmark import benchmark
from sa_mmdet.analysis.benchmark_steps import PublishedShuffleAttention, make_step


@pytest.mark.parametrize("level", ["operator", "backbone", pytest.param("detector", marks=pytest.mark.long)])
def test_every_variant_is_measured_beside_the_plain_one(level: str) -> None:
    found = benchmark(level, (64, 64), 1, ["published", "reference", "fused", "se"], repeats=2, memory=False)
    assert list(found) == ["plain", "published", "reference", "fused", "se"]
    for measured in found.values():
        assert 0 < measured["training"]["min_ms"] <= measured["training"]["median_ms"]
        low, high = measured["training"]["quartiles_ms"]
        assert low <= high
        assert measured["training"]["ratio_paired"] > 0
        assert (level == "operator") == ("backward" in measured)
        if level == "operator":
            assert measured["backward"]["share_of_copy"] > 0
    assert found["plain"]["inference"]["ratio_min"] == found["plain"]["inference"]["ratio_paired"] == 1


def test_folded_variants_are_measured_in_inference_alone() -> None:
    found = benchmark("backbone", (64, 64), 1, ["none", "folded", "baked"], repeats=1, memory=False)
    assert [sorted(found[variant]) for variant in found] == [["inference", "training"]] * 2 + [["inference"]] * 2


def test_the_time_beside_convolutions_is_compared() -> None:
    found = benchmark("backbone", (64, 64), 1, ["cbam", "none"], repeats=1, memory=False, operators=True)
    assert found["plain"]["inference"]["kept_mib"] == 0
    kept = {variant: measured["training"]["kept_mib"] for variant, measured in found.items()}
    assert 0 < kept["none"] < 0.65 * kept["plain"]
    assert kept["none"] < kept["cbam"] < kept["plain"]
    for mode in ("inference", "training"):
        plain, cbam = found["plain"][mode], found["cbam"][mode]
        total = plain["convolutions_ms"] + plain["rest_ms"]
        assert plain["ratio_rest"] == 1
        assert cbam["ratio_rest"] == pytest.approx((plain["convolutions_ms"] + cbam["rest_ms"]) / total)
        assert cbam["rest_ms"] == pytest.approx(sum(cbam["operators_ms"].values()))
        # The gates' own convolutions are not the network's.
        assert not [name for name in plain["operators_ms"] if name.startswith("aten::") and "conv" in name]
        assert [name for name in cbam["operators_ms"] if name.startswith("aten::") and "conv" in name]
    with pytest.raises(ValueError, match="measured on a CPU, not on cuda"):
        benchmark("backbone", (64, 64), 1, [], repeats=1, device="cuda", operators=True)


@pytest.mark.long
@needs.onnx
def test_variants_in_onnx_runtime_compute_what_those_in_pytorch_do() -> None:
    step: Any = make_step("backbone", "folded-onnxruntime", "inference", (64, 96), 2, "cpu", "float32")
    torch.manual_seed(0)
    model: Any = ResNet(50, frozen_stages=1)
    model.train(False)
    with torch.no_grad():
        expected = model(torch.from_numpy(step.args[1]["image"]))
    for one, other in zip(step(), expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(one), other, rtol=1e-3, atol=1e-3)


def test_the_operator_has_no_folded_norms() -> None:
    with pytest.raises(ValueError, match="the operator's level has no variant 'folded'"):
        benchmark("operator", (64, 64), 1, ["folded"], repeats=1, memory=False)


@pytest.mark.parametrize("other", [dict(level="detector"), dict(dtype="float16"), dict(device="cuda")])
def test_onnx_runtime_measures_nothing_under_another_name(other: dict[str, str]) -> None:
    options: Any = dict(level="backbone", shape=(64, 64), batch=1, variants=["folded-onnxruntime"], repeats=1) | other
    with pytest.raises(
        ValueError, match=f"a backbone on the CPU in float32 alone, not for .*{next(iter(other.values()))}"
    ):
        benchmark(**options, memory=False)


def test_the_published_variant_is_shuffle_attention() -> None:
    torch.manual_seed(0)
    published = PublishedShuffleAttention(32, groups=4).double()
    for parameter in published.parameters():
        nn.init.normal_(parameter)
    (cweight, sweight), (cbias, sbias), norm = published.weights, published.biases, published.norm
    parameters = dict(cweight=cweight, cbias=cbias, sweight=sweight, sbias=sbias)
    x = torch.randn(2, 32, 5, 6).double()
    expected = reference.shuffle_attention(x, parameters | {"gn.weight": norm.weight, "gn.bias": norm.bias}, 4)
    torch.testing.assert_close(published(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.long
def test_the_memory_of_a_training_step_is_that_of_its_tensors() -> None:
    peak = benchmark("operator", (256, 256), 1, [], repeats=1)["plain"]["memory"]["peak_mib"]
    # The inputs of the four blocks' ends take 15/8 of 4 MiB; a step needs a few more tensors of their size, not 50.
    assert 4 < peak < 400


def test_the_tool_writes_json_and_a_plot(tool: Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["operator", "--shape", 64, 64, "--shape", 64, 96, "--repeats", 2, "--arms", "fused"]
    arguments += ["--device", "cpu", "--no-memory", "--operators", "--json", "out.json", "--png", "out.png"]
    status, printed, _ = tool("analysis_tools/benchmark.py", *arguments)
    assert status == 0
    assert "64 x 96, batch 1: ratios to plain" in printed
    assert "64 x 96, batch 1: medians under the profiler" in printed
    written = json.loads((tmp_path / "out.json").read_text())
    assert [run["shape"] for run in written["runs"]] == [[64, 64], [64, 96]]
    assert written["runs"][0]["results"]["fused"]["training"]["ratio_min"] > 0
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


def test_every_target_is_checked(tool: Tool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sa_mmdet.analysis.benchmark.peak_memory", lambda *arguments: 1.0)
    monkeypatch.setattr("sa_mmdet.analysis.benchmark.make_step", lambda *arguments: lambda: None)
    status, printed, _ = tool("misc/check_targets.py", "--device", "cpu", "--shape", 64, 64, "--repeats", 1)
    verdicts = [line.split()[0] for line in printed.splitlines() if "target <=" in line]
    assert len(verdicts) == 2 * (6 * 3 + 2)
    assert "backbone, ResNet-101, 64 x 64, batch 1, float32" in printed
    assert status == ("MISSED" in verdicts)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(level="layer"), "level='layer' is unknown: choose one of operator, backbone, detector"),
        (dict(variants=["quick"]), "unknown variants quick: choose from plain, published"),
        (dict(dtype="int8"), "dtype='int8' is unknown"),
        (dict(depth=34), "depth=34 is unknown: choose one of 50, 101"),
        (dict(repeats=0), "repeats=0 and batch=1 must be at least 1"),
    ],
    ids=str,
)
def test_invalid_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        benchmark(**{"level": "operator", "shape": (64, 64), "batch": 1, "variants": [], "repeats": 1, **options})
