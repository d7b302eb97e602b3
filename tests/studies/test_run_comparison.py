"""Several configs and seeds: which runs are started, which are not repeated, and how they are compared."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_up_coco import made_up
from mmengine.config import Config
from places import CONFIGS, DEMO, Tool
from study_runs import Runs

from sa_mmdet.studies import launching

TOOL = "analysis_tools/run_comparison.py"
BCCD = CONFIGS / "demo" / "faster-rcnn_r18_fpn_bccd.py"


def test_it_continues_where_it_was_stopped_and_compares(
    runs: Runs, small: Callable[[str], list[Path]], tool: Tool, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    compared = small("metric")
    arguments = (TOOL, *compared, "--seeds", 0, 1, "--work-dir", work, "--resamples", 50)
    plain, sa = (config.stem for config in compared)
    runs.fails_at = ("test", sa, "seed0")
    status, _, errors = tool(*arguments)
    assert status == 1
    assert f"{work / sa / 'seed0'}: " in errors
    assert "run this again to continue" in errors
    assert "RuntimeError: no more memory" in errors
    assert runs.calls == [(t, c, f"seed{n}") for n in (0, 1) for c in (plain, sa) for t in ("train", "test")]
    assert not (work / "comparison.json").exists()
    status, printed, _ = tool(*arguments, "--status")
    assert status == 0
    *states, whole = printed.splitlines()
    assert [line.split()[1].rstrip(":") for line in states] == ["finished", "failed"] + ["finished"] * 2
    assert whole == "4 runs: 3 finished, 1 failed"

    runs.fails_at, runs.calls = None, []
    status, printed, _ = tool(*arguments)
    assert status == 0
    assert runs.calls == [("test", sa, "seed0")]  # its training ended, and a hook may have ended it early
    written = json.loads((work / "comparison.json").read_text())
    found = written["tasks"]["bbox"]
    for variant in range(2):
        points = [run["AP"] for run in found["runs"][variant]]
        assert found["means"][variant]["AP"] == pytest.approx(sum(points) / 2)
        assert found["deviations"][variant]["AP"] == pytest.approx(abs(points[0] - points[1]) / 2**0.5)
    row = found["differences"][0]["AP"]
    assert row["difference"] == pytest.approx(found["means"][1]["AP"] - found["means"][0]["AP"])
    assert 0 < row["low"] < row["difference"] < row["high"]
    assert f"{sa} - {plain}: {100 * row['difference']:+.1f} box AP" in printed
    assert "better" in printed

    runs.calls = []
    assert tool(*arguments)[0] == 0
    assert runs.calls == []


def test_the_annotations_are_those_of_the_effective_config(
    runs: Runs, small: Callable[[str], list[Path]], tool: Tool, tmp_path: Path
) -> None:
    runs.noisy, runs.truth = False, made_up(60, seed=7)
    other = tmp_path / "other.json"
    other.write_text(json.dumps(runs.truth))
    work = tmp_path / "work"
    arguments = (TOOL, *small("metric"), "--seeds", 0, "--work-dir", work, "--resamples", 5)
    options = ("--cfg-options", f"test_evaluator.ann_file={other}")
    status, printed, errors = tool(*arguments, *options)
    assert status == 0, errors
    assert printed.count("AP 100.0") == 2
    status, _, errors = tool(*arguments)
    assert status == 1
    assert "was begun with other settings (before, now): test_evaluator.ann_file (" in errors
    assert re.search(r"/other.json', '[^']*/instances_val.json'\)", errors)
    assert "name another --work-dir" in errors
    assert tool(*arguments, *options)[0] == 0


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("[dict(type='DumpDetResults', out_file_path='a.pkl'), metric]", "test_evaluator.1"),
        ("dict(type='Evaluator', metrics=[metric])", "test_evaluator.metrics.0"),
    ],
)
def test_a_test_may_have_several_evaluators(
    runs: Runs, small: Callable[[str], list[Path]], tool: Tool, tmp_path: Path, text: str, key: str
) -> None:
    runs.evaluator, configs = key, small(text)
    status, printed, errors = tool(TOOL, *configs, "--seeds", 0, "--work-dir", tmp_path / "work", "--resamples", 5)
    assert status == 0, errors
    assert "not told apart" in printed
    other = ("--cfg-options", f"{key}.ann_file=none.json")
    status, _, errors = tool(TOOL, *configs, "--seeds", 1, "--work-dir", tmp_path / "work", *other)
    assert status == 1
    assert "none.json" in errors


@pytest.mark.parametrize(
    ("evaluators", "options", "message"),
    [
        ("dict(type='DumpDetResults', out_file_path='a.pkl')", [], "names annotations: give a CocoMetric"),
        ("[metric, dict(metric, ann_file='b.json')]", [], "tests on several files of annotations ("),
        ("metric", ["test_evaluator.ann_file"], "test_evaluator.ann_file: give pairs KEY=VALUE"),
        ("[metric]", ["test_evaluator.3.ann_file=a.json"], "--cfg-options do not fit it"),
    ],
)
def test_tests_without_clear_annotations_are_refused(
    runs: Runs,
    small: Callable[[str], list[Path]],
    tool: Tool,
    tmp_path: Path,
    evaluators: str,
    options: list[str],
    message: str,
) -> None:
    changes = ["--cfg-options", *options] if options else []
    status, _, errors = tool(TOOL, *small(evaluators), "--work-dir", tmp_path / "work", *changes)
    assert status == 1
    assert message in errors
    assert runs.calls == []


def test_configs_that_cannot_be_compared_are_refused(runs: Runs, tool: Tool, tmp_path: Path) -> None:
    status, _, errors = tool(TOOL, BCCD, DEMO, "--work-dir", tmp_path / "work")
    assert status == 1
    assert "the configs are tested on different annotations" in errors
    status, _, errors = tool(TOOL, BCCD, BCCD, "--work-dir", tmp_path / "work")
    assert status == 2
    assert "duplicate config or seed" in errors
    assert runs.calls == []


def test_a_run_with_other_settings_is_not_judged_as_one_of_these(
    runs: Runs, small: Callable[[str], list[Path]], tool: Tool, tmp_path: Path
) -> None:
    work, configs = tmp_path / "work", small("metric")
    for path in configs:
        path.write_text(path.read_text() + "train_cfg = dict(max_epochs=3)\n")
    arguments = (TOOL, *configs, "--seeds", 0, 1, "--work-dir", work, "--resamples", 5)
    assert tool(*arguments)[0] == 0
    runs.calls = []
    status, _, errors = tool(*arguments, "--cfg-options", "train_cfg.max_epochs=6")
    assert status == 1
    before = "was begun with other settings (before, now): train_cfg.max_epochs (3, 6): give the old ones, name another"
    assert f"run_comparison: {work / configs[0].stem / 'seed0'}: {before} --work-dir, or remove this one" in errors
    assert len(errors.strip().splitlines()) == 1
    configs[1].write_text(configs[1].read_text().replace("max_epochs=3", "max_epochs=12"))
    assert "train_cfg.max_epochs (3, 12)" in tool(*arguments)[2]
    configs[1].write_text(configs[1].read_text().replace("max_epochs=12", "max_epochs=3"))
    assert tool(*arguments)[0] == 0
    # A folder that was copied, to save a training.
    shutil.rmtree(work / configs[0].stem / "seed1")
    shutil.copytree(work / configs[0].stem / "seed0", work / configs[0].stem / "seed1")
    assert "randomness.seed (0, 1)" in tool(*arguments)[2]
    assert runs.calls == []


def test_a_moved_study_is_judged_where_it_is_now(
    runs: Runs, small: Callable[[str], list[Path]], tool: Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, configs = tmp_path / "work", small("metric")
    arguments = (TOOL, *configs, "--seeds", 0, "--resamples", 5, "--work-dir")
    assert tool(*arguments, work)[0] == 0
    work.rename(tmp_path / "moved")
    (tmp_path / "annotations").rename(tmp_path / "elsewhere")
    for path in configs:
        path.write_text(path.read_text().replace("annotations", "elsewhere"))
    for path in (tmp_path / "moved").glob("*/*/new/*/vis_data/config.py"):
        old = dict(type="CocoMetric", ann_file=str(tmp_path / "annotations" / "instances_val.json"))
        Config(dict(test_evaluator=old)).dump(path)
    runs.calls = []
    status, said, errors = tool(*arguments, tmp_path / "moved")
    assert status == 0, errors
    assert runs.calls == []
    assert f"its run was tested on {tmp_path / 'annotations' / 'instances_val.json'}, which is not here; it is" in said
    # A training that was moved before its test.
    run = tmp_path / "moved" / configs[0].stem / "seed0"
    (run / "results.bbox.json").unlink()
    shutil.rmtree(run / "new")
    (run / "epoch_1.pth").touch()
    checkpoints = []

    def trained(command: list[str], *others: Any) -> int:
        if "train" in command[1]:
            return 0  # MMEngine has nothing to do, and writes nothing
        checkpoints.append(command[3])
        return runs(command, *others)

    monkeypatch.setattr(launching, "run", trained)
    assert tool(*arguments, tmp_path / "moved")[0] == 0
    assert checkpoints == [str(run / "epoch_1.pth")]


def test_another_study_in_the_folder_is_not_replaced(
    runs: Runs, small: Callable[[str], list[Path]], tool: Tool, tmp_path: Path
) -> None:
    work, configs = tmp_path / "work", small("metric")
    others = [Path(shutil.copy(path, path.with_name(f"other-{path.name}"))) for path in configs]
    options = ("--seeds", 0, "--work-dir", work, "--resamples", 5)
    assert tool(TOOL, *configs, *options)[0] == 0
    written = (work / "comparison.json").read_text()
    status, _, errors = tool(TOOL, *others, *options)
    assert status == 1
    assert f"{work / 'comparison.json'}: is the comparison of other configs (plain, sa-plain): name another" in errors
    assert (work / "comparison.json").read_text() == written
    assert tool(TOOL, *configs, *others, *options)[0] == 0  # more variants are the same study
    assert tool(TOOL, *configs, *options)[0] == 0
    (work / "comparison.json").write_text("[3]")
    assert tool(TOOL, *configs, *options)[0] == 0


def test_results_that_are_missing_copied_or_of_other_images_are_named(
    runs: Runs, small: Callable[[str], list[Path]], tool: Tool, tmp_path: Path
) -> None:
    work, configs = tmp_path / "work", small("metric")
    arguments = (TOOL, *configs, "--seeds", 0, 1, "--work-dir", work, "--resamples", 5)
    assert tool(*arguments)[0] == 0
    first, second = (work / configs[1].stem / f"seed{seed}" / "results.bbox.json" for seed in (0, 1))
    own = second.read_text()
    second.write_text(first.read_text())
    status, _, errors = tool(*arguments)
    assert status == 1
    assert f"{second} and {first}, both {configs[1].stem}, hold the same detections, which would count as two" in errors
    second.write_text(json.dumps([dict(image_id=999, category_id=1, score=1, bbox=[0, 0, 1, 1])]))
    status, _, errors = tool(*arguments)
    assert status == 1
    assert "names the image 999, which the annotations do not have: do these results belong to other images?" in errors
    second.rename(second.with_name("results.segm.json"))
    status, said, errors = tool(*arguments)
    assert status == 0, errors
    assert f"box AP is not compared, since {second} are missing: remove the other results of their folders" in said
    assert "mask AP is not compared, since " in said
    assert "told apart" not in said
    second.with_name("results.segm.json").unlink()
    second.write_text(own)
    assert "told apart" in tool(*arguments)[1] or "better" in tool(*arguments)[1]


@pytest.mark.long
def test_real_runs(shapes: Path, tool: Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHAPES_ROOT", str(shapes))
    config = tmp_path / "plain.py"
    config.write_text(
        f"_base_ = [{str(DEMO)!r}]\nmodel = dict(backbone=dict(implementation='reference'))\n"
        "test_evaluator = [dict(_base_.val_evaluator, metric=task) for task in ('bbox', 'segm')]\n"
    )
    options = ["--cfg-options", "train_cfg.max_epochs=1", "--resamples", 20]
    status, _, errors = tool(TOOL, DEMO, config, "--seeds", 3, "--work-dir", tmp_path / "work", *options)
    assert status == 0, errors
    written = json.loads((tmp_path / "work" / "comparison.json").read_text())
    assert set(written["tasks"]) == {"bbox", "segm"}
