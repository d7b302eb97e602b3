"""A study on a real slurm, and one with several processes per run, end in the figures of an undisturbed one."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from places import CONFIGS, DEMO, Tool
from slurm_cluster import Cluster

TOOL = "analysis_tools/run_comparison.py"
_PIPELINES = (("train", 2), ("val", 1), ("test", 1))
SMALL = [f"{part}_dataloader.dataset.pipeline.{i}.scale=(112,84)" for part, i in _PIPELINES]
needs_slurm = pytest.mark.skipif(bool(Cluster.missing()), reason=f"slurm is not here: no {Cluster.missing()}")
pytestmark = pytest.mark.long


@dataclass(frozen=True)
class Trained:
    """Two configs, and the options for run_comparison.py with which they train for minutes."""

    configs: list[Path]
    options: list[object]


@pytest.fixture
def on_shapes(shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trained:
    monkeypatch.setenv("SHAPES_ROOT", str(shapes))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    plain = tmp_path / "plain.py"
    plain.write_text(f"_base_ = [{str(DEMO)!r}]\nmodel = dict(backbone=dict(implementation='reference'))\n")
    return Trained([plain, DEMO], options(8))


@pytest.fixture
def on_blood_cells(bccd: Path, monkeypatch: pytest.MonkeyPatch) -> Trained:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    configs = [CONFIGS / "demo" / f"faster-rcnn_{attention}r18_fpn_bccd.py" for attention in ("", "sa-")]
    return Trained(configs, [*options(3), *SMALL, "default_hooks.checkpoint.max_keep_ckpts=3"])


@pytest.fixture
def on_coco128(coco128: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trained:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    annotations = coco128 / "annotations" / "instances_train2017.json"
    configs = []
    for name in ("faster-rcnn_r50_fpn_1x_coco", "faster-rcnn_sa-r50_fpn_1x_coco"):
        own = tmp_path / f"{name.replace('50_fpn_1x_coco', '18_coco128')}.py"
        lines = [f"_base_ = [{str(CONFIGS / 'faster_rcnn' / f'{name}.py')!r}]"]
        backbone = f"dict(depth=18, init_cfg=None{', groups=16' * ('sa-' in name)})"
        lines += [f"model = dict(backbone={backbone}, neck=dict(in_channels=[64, 128, 256, 512]))"]
        for part in ("train", "val", "test"):
            data = f"data_root={str(coco128)!r}, ann_file={str(annotations)!r}, data_prefix=dict(img='train2017/')"
            lines += [f"{part}_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict({data}))"]
        lines += [f"{part}_evaluator = dict(ann_file={str(annotations)!r})" for part in ("val", "test")]
        own.write_text("\n".join(lines))
        configs.append(own)
    few = ["train_dataloader.dataset.pipeline.2.scale=(160,120)"]
    few += [f"{part}_dataloader.dataset.pipeline.1.scale=(160,120)" for part in ("val", "test")]
    few += ["model.test_cfg.rcnn.score_thr=0.0", "model.test_cfg.rpn.nms_pre=100", "model.test_cfg.rpn.max_per_img=50"]
    few += ["model.train_cfg.rcnn.sampler.num=32", "model.train_cfg.rpn_proposal.max_per_img=50"]
    few += ["train_dataloader.dataset.indices=60", "val_dataloader.dataset.indices=8"]
    return Trained(configs, [*options(4), *few, "default_hooks.checkpoint.max_keep_ckpts=3"])


@pytest.fixture(params=["on_shapes", "on_blood_cells", "on_coco128"])
def trained(request: pytest.FixtureRequest) -> Trained:
    found: Trained = request.getfixturevalue(request.param)
    return found


def options(epochs: int) -> list[object]:
    return ["--resamples", 20, "--cfg-options", f"train_cfg.max_epochs={epochs}", f"train_cfg.val_interval={epochs}"]


def judged(work: Path) -> Any:
    return json.loads((work / "comparison.json").read_text())["tasks"]


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("s")) as running:
        yield running


@needs_slurm
def test_preempted_killed_and_cancelled_runs_end_as_undisturbed_ones(
    trained: Trained, cluster: Cluster, tool: Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs, options = trained.configs, trained.options
    arguments = (TOOL, *configs, "--seeds", 0, "--work-dir")
    status, _, errors = tool(*arguments, tmp_path / "undisturbed", *options)
    assert status == 0, errors
    for name, value in cluster.environment().items():
        monkeypatch.setenv(name, value)
    work = tmp_path / "work"

    status, _, errors = tool(*arguments, work, "--slurm=--partition=nowhere", *options)
    assert status == 1
    assert "--slurm: sbatch refuses the job: " in errors
    assert "invalid partition" in errors

    status, said, errors = tool(*arguments, work, "--slurm=--partition=work", *options)
    assert status == 0, errors
    array, last = re.findall(r"job (\d+)", said)
    runs = [work / path.stem / "seed0" for path in configs]
    cluster.wait_until(lambda: all((run / "epoch_1.pth").exists() for run in runs), 600)
    status, told, _ = tool(*arguments, work, "--status", *options)
    assert status == 0
    assert told.splitlines()[-1].startswith("2 runs: 2 running")

    node = cluster.node_of(f"{array}_1")
    urgent = cluster.submit("--partition=urgent", f"--nodelist={node}", "--wrap=sleep 1")
    cluster.wait_until(lambda: cluster.jobs().get(urgent) == "COMPLETED")
    cluster.kill_node(cluster.node_of(f"{array}_2"))
    began = (runs[1] / "train.log").stat().st_size
    cluster.wait_until(lambda: (runs[1] / "train.log").stat().st_size > began, 600)
    cluster.run("scancel", f"{array}_2")
    for name, state in cluster.nodes().items():
        if state.startswith("down"):
            cluster.start_node(name)
    cluster.wait_until(lambda: cluster.jobs().get(last) in ("COMPLETED", "FAILED"), 900)
    assert (runs[0] / "results.bbox.json").exists()
    assert not (runs[1] / "results.bbox.json").exists()
    log = (work / "slurm" / "judge.log").read_text()
    assert f"1 of 2 runs are not finished, and not judged: {configs[1].stem}/seed0" in log

    status, said, errors = tool(*arguments, work, "--slurm", *options)
    assert status == 0, errors
    last = re.findall(r"job (\d+)", said)[1]
    cluster.wait_until(lambda: cluster.jobs().get(last) in ("COMPLETED", "FAILED"), 900)
    assert judged(work) == judged(tmp_path / "undisturbed")
    assert (work / "report.html").is_file()
    assert len(list(runs[0].glob("*/vis_data/config.py"))) > 1  # it was begun more than once


def test_two_runs_at_a_time_with_two_processes_each(on_shapes: Trained, tool: Tool, tmp_path: Path) -> None:
    configs, options = on_shapes.configs, on_shapes.options
    arguments = (TOOL, *configs, "--seeds", 0, "--work-dir", tmp_path / "work", "--gpus-per-run", 2)
    status, said, errors = tool(*arguments, "--jobs", 2, *options)
    assert status == 0, errors
    assert len(re.findall(r"seed0: finished in", said)) == 2
    status, _, errors = tool(*arguments[:-2], *options)
    assert status == 1
    assert "the number of processes (2, 1)" in errors
    status, _, errors = tool(
        TOOL, *configs, "--seeds", 0, "--work-dir", tmp_path / "one", "--gpus-per-run", 2, *options
    )
    assert status == 0, errors
    assert judged(tmp_path / "work") == judged(tmp_path / "one")
