"""The paper's tables in one command: which configs, what they take, and how their figures stand beside the paper's."""

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up_coco import detections, made_up
from places import CONFIGS, Tool

from sa_mmdet.evaluation.classification import compare_classifiers
from sa_mmdet.studies import launching
from sa_mmdet.studies.paper import TABLES, beside_paper, groups_of

TOOL = "analysis_tools/run_comparison.py"
T_OF_2 = 4.302653  # the 97.5 % quantile of Student's t with 2 degrees of freedom, from a printed table


def printed_rows(table: str) -> list[dict[str, str]]:
    with next((CONFIGS / "_paper_").glob(f"{table}_*.csv")).open(newline="") as file:
        return list(csv.DictReader(file))


def is_training(command: list[str]) -> bool:
    return any(word.endswith("train.py") for word in command)


class Coco:
    """A folder like COCO's, with made-up objects on images that are one byte each, and trainings that take no time."""

    def __init__(self, root: Path) -> None:
        self.root, self.truth = root, made_up(40)
        (root / "annotations").mkdir(parents=True)
        for part in ("train2017", "val2017"):
            (root / part).mkdir()
            for image in self.truth["images"]:
                (root / part / image["file_name"]).write_bytes(b"x")
            (root / "annotations" / f"instances_{part}.json").write_text(json.dumps(self.truth))
        annotations = root / "annotations" / "instances_val2017.json"
        self.options = [
            "--cfg-options",
            *(f"{part}_dataloader.dataset.data_root={root}/" for part in ("train", "test")),
        ]
        self.options += [f"test_evaluator.ann_file={annotations}"]
        self.begun: list[str] = []

    def __call__(self, command: list[str], log: Path, variables: Any, descriptors: Any) -> int:
        folder = Path(command[command.index("--work-dir") + 1])
        if is_training(command):
            self.begun.append(folder.parent.name)
            (folder / "last_checkpoint").write_text(str(folder / "epoch_12.pth"))
            return 0
        [prefix] = [word.partition("=")[2] for word in command if ".outfile_prefix=" in word]
        run = folder.parent
        noise = 0.04 if "_sa-" in run.parent.name else 0.05
        found = detections(self.truth, noise, seed=int(run.name[-1]))
        Path(prefix).parent.mkdir(exist_ok=True)
        kinds = ("bbox", "segm") if "mask-rcnn" in run.parent.name else ("bbox",)
        for kind in kinds:
            Path(f"{prefix}.{kind}.json").write_text(json.dumps(found))
        return 0


@pytest.fixture
def coco(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Coco:
    found = Coco(tmp_path / "coco")
    monkeypatch.setattr(launching, "run", found)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10**12))
    return found


@pytest.mark.parametrize("table", [table for table in TABLES if table.startswith("table")])
def test_every_row_of_a_table_has_its_config(table: str) -> None:
    groups = groups_of(table)
    rows = printed_rows(table)
    figures = [figure for group in groups for figure in group.figures]
    assert figures == [float(row["ap"] if "ap" in row else row["top1"]) for row in rows]
    configs = [Path(config) for group in groups for config in group.configs]
    assert len(set(configs)) == len(rows)
    for path, row in zip(configs, rows, strict=True):
        assert path.is_file()
        depth = row.get("backbone", "ResNet-50").removeprefix("ResNet-")
        assert f"r{depth}" in path.stem
        said = row.get("attention") or row["method"]
        attention = {"none": "", "ResNet": "", "SENet": "se-"}.get(said, f"{said.split('-')[0].lower()}-")
        assert table == "table1" or f"{attention}r{depth}" in path.stem.split("_")


def test_every_row_of_the_senet_article_is_in_a_study() -> None:
    with (CONFIGS / "_paper_" / "senet_imagenet.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = [table for table in TABLES if table.startswith("senet-")]
    assert set(names) == {f"senet-{row['study']}" for row in rows}
    for name in names:
        groups = groups_of(name)
        found = {
            config: figure for group in groups for config, figure in zip(group.configs, group.figures, strict=True)
        }
        own = [row for row in rows if name == f"senet-{row['study']}"]
        expected = {str(CONFIGS / f"{row['config']}.py"): 100 - float(row["top1_error"]) for row in own}
        assert {str(Path(path).resolve()): figure for path, figure in found.items()} == pytest.approx(expected)
        assert all(Path(path).is_file() for path in found)
        # Tables share rows; the first is what the others are compared with.
        assert len(groups) == (3 if name == "senet-networks" else 1)
        for group in groups:
            assert Path(group.configs[0]).stem.split("_")[0] in (
                "r50",
                "r101",
                "resnext50-32x4d",
                "se-r50-without-bias",
            )


@pytest.mark.parametrize(
    ("images", "said"),
    [
        pytest.param(50_000, "the SENet article has 77.7 top1, measured", marks=pytest.mark.long),
        (48, "these are 48 images, and the SENet article has results of 50000: "),
    ],
)
def test_figures_beside_others_than_imagenets_images_are_said_to_mean_nothing(
    images: int, said: str, tmp_path: Path
) -> None:
    [group] = groups_of("senet-excitation")
    labels = np.arange(images) % 10
    variants: list[tuple[str, list[Path]]] = []
    for config in group.configs:
        paths = [tmp_path / f"{Path(config).stem}{seed}.csv" for seed in range(2)]
        for seed, path in enumerate(paths):
            right = np.random.default_rng([seed, len(variants)]).random(images) < 0.77
            lines = [
                f"{n:05}.JPEG,{label},{label + 1 - ok}" for n, (label, ok) in enumerate(zip(labels, right, strict=True))
            ]
            path.write_text("\n".join(["image,label,top1", *lines]))
        variants.append((Path(config).stem, paths))
    lines = beside_paper(group, compare_classifiers(variants, None, 20, 0.95))
    assert len(lines) == (3 if images == 50_000 else 4)
    assert said in lines[0]


@pytest.mark.long
def test_a_table_is_trained_and_judged_beside_the_papers_figures(coco: Coco, tool: Tool, tmp_path: Path) -> None:
    work = tmp_path / "work"
    arguments = (TOOL, "--paper", "table4", "--work-dir", work, "--resamples", 20, *coco.options)
    status, said, errors = tool(*arguments)
    assert status == 0, errors
    rows = printed_rows("table4")
    assert len(set(coco.begun)) == len(rows) == 10
    assert len(coco.begun) == 3 * 10
    assert "2 images per step: learning rates are multiplied by 2/16" in said
    assert sorted(path.name for path in work.glob("comparison*")) == [
        f"comparison_mask-rcnn_{depth}.json" for depth in ("r101", "r50")
    ]
    found = json.loads((work / "comparison_mask-rcnn_r50.json").read_text())
    for name, runs, row in zip(found["names"], found["tasks"]["segm"]["runs"], rows[:5], strict=True):
        assert (
            name == f"mask-rcnn_{'' if row['attention'] == 'none' else row['attention'].lower() + '-'}r50_fpn_1x_coco"
        )
        values = np.array([100 * run["AP"] for run in runs])
        half = T_OF_2 * values.std(ddof=1) * np.sqrt(4 / 3)
        low, high = values.mean() - half, values.mean() + half
        inside = "inside" if low <= float(row["ap"]) <= high else "outside"
        assert (
            f"{name}: the paper has {row['ap']} mask AP, measured {values.mean():.1f} (3 runs); another run would lie "
            f"between {low:.1f} and {high:.1f} with 95%: the paper's lies {inside}\n"
        ) in said
    assert said.count(": the paper has") == 10  # of masks alone
    assert said.count("these are 40 images, and the paper has results of 5000: ") == 2
    # Each depth is compared with its own plain network.
    assert re.search(r"\nmask-rcnn_sa-r101_fpn_1x_coco - mask-rcnn_r101_fpn_1x_coco: ", said)
    coco.begun.clear()
    for task in ("bbox", "segm"):
        (work / "mask-rcnn_eca-r50_fpn_1x_coco" / "seed1" / f"results.{task}.json").unlink()
    status, said, errors = tool(*arguments[:5], "--judge", *arguments[5:])
    assert status == 1
    assert "1 of 30 runs are not finished, and not judged: mask-rcnn_eca-r50_fpn_1x_coco/seed1" in errors
    assert "mask-rcnn_r101, mask, mean of 3 seeds" in said
    assert "mask-rcnn_r50, mask" not in said
    status, said, errors = tool(*arguments[:5], "--run", 30, *arguments[5:])
    assert status == 0, errors
    assert "mask-rcnn_sa-r101_fpn_1x_coco/seed2: finished before" in said
    assert "--run 31: the study has 30 runs" in tool(*arguments[:5], "--run", 31, *arguments[5:])[2]
    assert not coco.begun


@pytest.mark.long
def test_the_plan_says_what_a_table_takes_before_coco_is_here(tool: Tool, tmp_path: Path) -> None:
    status, said, errors = tool(TOOL, "--paper", "table3", "--plan-only", "--work-dir", tmp_path / "work", "--jobs", 8)
    assert status == 0, errors
    *runs, left, disk = said.splitlines()
    assert len(runs) == 54
    hours = {line.split("/")[0]: float(re.findall(r"([\d.]+) \w+ hours in all$", line)[0]) for line in runs}
    # Table 3's multiply-adds of 800 x 1280 pixels; MMDetection trains at 800 x 1344 with padding.
    operations = 6 * 207.07e9 * (800 * 1344) / (800 * 1280) * 118_287 * 12
    rate = float(re.findall(r"epochs / (\S+) per second", left)[0])
    assert hours["faster-rcnn_r50_fpn_1x_coco"] == pytest.approx(operations / rate / 3600, rel=0.05)
    assert hours["faster-rcnn_r101_fpn_1x_coco"] > 1.2 * hours["faster-rcnn_r50_fpn_1x_coco"]
    assert float(re.findall(r"left: ([\d.]+) ", left)[0]) == pytest.approx(3 * sum(hours.values()), rel=0.01)
    needed, free = (float(value) for value in re.findall(r"([\d.]+) GB", disk))
    # 12 checkpoints of SGD with momentum for at least 18 x 3 networks of 37 million parameters.
    assert needed > 54 * 12 * 8 * 37e6 / 1e9
    assert free > 0
    assert not (tmp_path / "work").exists()


def test_coco_that_is_missing_or_incomplete_is_named_before_anything_starts(
    coco: Coco, tool: Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = (TOOL, "--paper", "table4", "--work-dir", tmp_path / "work")
    status, _, errors = tool(*arguments)
    assert status == 1
    assert "data/coco/annotations/instances_train2017.json: there is no such file: MMDetection downloads COCO" in errors
    assert "--dataset-name coco2017 --save-dir data/coco" in errors
    first, second, *_ = coco.truth["images"]
    (coco.root / "train2017" / first["file_name"]).unlink()
    (coco.root / "train2017" / second["file_name"]).write_bytes(b"")
    status, _, errors = tool(*arguments, *coco.options)
    assert status == 1
    assert "train2017/: 2 of the 40 images of " in errors
    assert len(errors.strip().splitlines()) == 1
    assert not coco.begun
    assert not (tmp_path / "work").exists()


def test_a_study_that_does_not_fit_the_disk_is_refused(
    coco: Coco, tool: Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10**9))
    config = CONFIGS / "mask_rcnn" / "mask-rcnn_sa-r101_fpn_1x_coco.py"
    arguments = (TOOL, config, "--work-dir", tmp_path / "work", *coco.options)
    status, _, errors = tool(*arguments)
    assert status == 1
    assert re.search(r"the runs need \d+\.\d GB of disk space, but 1\.0 GB are free: choose another --work-dir", errors)
    assert not coco.begun


def test_checkpoints_that_are_not_needed_go_on_request(
    coco: Coco, tool: Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = coco.__call__

    def leave_checkpoints(command: list[str], log: Path, variables: Any, descriptors: Any) -> int:
        folder = Path(command[command.index("--work-dir") + 1])
        if is_training(command):
            for name in ("epoch_11.pth", "epoch_12.pth", "best_coco_bbox_mAP_epoch_3.pth"):
                (folder / name).touch()
        return train(command, log, variables, descriptors)

    config = CONFIGS / "retinanet" / "retinanet_sa-r50_fpn_1x_coco.py"
    monkeypatch.setattr(launching, "run", leave_checkpoints)
    for keep, left in (("all", 3), ("tested", 1), ("none", 0)):
        arguments = (TOOL, config, "--seeds", 0, "--work-dir", tmp_path / keep, "--resamples", 5)
        status, said, errors = tool(*arguments, "--keep-checkpoints", keep, *coco.options)
        assert status == 0, errors
        assert "there is one config: these are several runs of it, and nothing is compared" in said
        assert len(list((tmp_path / keep).rglob("*.pth"))) == left
    assert [path.name for path in (tmp_path / "tested").rglob("*.pth")] == ["epoch_12.pth"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either configs or --paper"),
        (["a.py", "--paper", "table3"], "give either configs or --paper"),
        (["--paper", "table3", "--status", "--judge"], "not allowed with argument"),
        (["--paper", "table5"], "invalid choice: 'table5'"),
    ],
)
def test_what_does_not_belong_together_is_refused(
    arguments: list[str], message: str, tool: Tool, tmp_path: Path
) -> None:
    status, _, errors = tool(TOOL, *arguments, "--work-dir", tmp_path / "work")
    assert status == 2
    assert message in errors


def test_fewer_gpus_than_asked_are_refused(
    coco: Coco, tool: Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    config = CONFIGS / "retinanet" / "retinanet_sa-r50_fpn_1x_coco.py"
    arguments = (TOOL, config, "--work-dir", tmp_path / "work", "--jobs", 3, "--gpus-per-run", 2)
    status, _, errors = tool(*arguments, *coco.options)
    assert status == 1
    assert "3 runs at a time with 2 GPUs each need 6 GPUs, but there are 4: give smaller --jobs" in errors
    assert not coco.begun


def test_the_number_of_processes_is_part_of_a_run(coco: Coco, tool: Tool, tmp_path: Path) -> None:
    config = CONFIGS / "retinanet" / "retinanet_sa-r50_fpn_1x_coco.py"
    arguments = (TOOL, config, "--seeds", 0, "--work-dir", tmp_path / "work", "--resamples", 5)
    for _ in range(2):
        status, _, errors = tool(*arguments, "--gpus-per-run", 2, *coco.options)
        assert status == 0, errors
    status, _, errors = tool(*arguments, *coco.options)
    assert status == 1
    assert "was begun with other settings (before, now): the number of processes (2, 1): give the old ones" in errors


def test_slurm_that_is_not_here_is_named(
    coco: Coco, tool: Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    config = CONFIGS / "retinanet" / "retinanet_sa-r50_fpn_1x_coco.py"
    status, _, errors = tool(TOOL, config, "--work-dir", tmp_path / "work", "--slurm", *coco.options)
    assert status == 1
    assert "--slurm: there is no sbatch on this machine" in errors
