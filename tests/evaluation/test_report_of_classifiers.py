"""The page about classifiers: their metrics, verdicts, costs and classes, and what is not put side by side."""

import csv
import html
import json
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from classifier_dirs import NONE, SA, SE, write_classifier
from made_up_coco import made_up
from made_up_predictions import DATA, IMAGES, accuracy, as_csv, as_json, as_pickle, table
from places import CONFIGS, Tool
from work_dirs import write_data, write_run

TOOL = "analysis_tools/report.py"
pytestmark = pytest.mark.usefixtures("undrawn")
STRENGTHS = (("none", NONE, 1.0), ("sa", SA, 2.0))


class Page:
    """What the page says, without its tags."""

    def __init__(self, text: str):
        self.source = text
        parts = re.findall(r'<p class="(verdict|note)">(.*?)</p>', text)
        self.verdicts = [html.unescape(inner) for kind, inner in parts if kind == "verdict"]
        self.notes = [html.unescape(inner)[6:] for kind, inner in parts if inner.startswith("Note: ")]
        self.titles = re.findall(r"<h2>(.*?)</h2>", text)
        self.captions = [html.unescape(one) for one in re.findall(r"<figcaption>(.*?)</figcaption>", text)]

    def rows(self, heading: str) -> list[list[str]]:
        """The first table below a heading, with its header."""
        found = re.search(rf"<h[23]>{heading}</h[23]>.*?<table[^>]*>(.*?)</table>", self.source, re.DOTALL)
        assert found is not None, heading
        rows = re.findall(r"<tr>(.*?)</tr>", found[1], re.DOTALL)
        cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows]
        return [[html.unescape(re.sub("<.*?>", "", cell)) for cell in row] for row in cells]


def report(tool: Tool, folders: list[Path], *options: object) -> Page:
    page = folders[0].parents[1] / "report.html"
    status, _, errors = tool(TOOL, *folders, "--out", page, "--resamples", 50, *options)
    assert status == 0, errors
    return Page(page.read_text())


def study(
    root: Path, write: Callable[[Path, np.ndarray], Path] = as_pickle, without: bool = False, **changes: Any
) -> list[Path]:
    """Two runs without attention and two with SA, which is better."""
    return [
        write_classifier(root / name / f"seed{seed}", own, seed, None if without else strength, write, **changes)
        for name, own, strength in STRENGTHS
        for seed in (0, 1)
    ]


def paper(name: str, **key: str) -> dict[str, str]:
    with (CONFIGS / "_paper_" / name).open(newline="") as file:
        [row] = [row for row in csv.DictReader(file) if all(row[column] == value for column, value in key.items())]
    return row


@pytest.mark.parametrize("write", [as_pickle, as_json, as_csv])
def test_the_page_judges_predictions_in_each_form(
    write: Callable[[Path, np.ndarray], Path], tool: Tool, tmp_path: Path
) -> None:
    page = report(tool, study(tmp_path, write))
    assert "<h1>Attention in classification: report</h1>" in page.source
    assert "Image classifier, ResNet-50, tested on ImageNet val" in page.source
    [verdict] = page.verdicts
    scores = [[DATA.scores(strength, seed) for seed in (0, 1)] for _, _, strength in STRENGTHS]
    top1, top5 = ([[100 * accuracy(one, k) for one in own] for own in scores] for k in (1, 5))
    gain = statistics.mean(top1[1]) - statistics.mean(top1[0])
    assert verdict.startswith(f"SA - none: {gain:+.1f} top1, 95% interval over seeds and images ")
    assert f"{IMAGES} images, 2 against 2 runs: " in verdict
    header, *rows = page.rows("Accuracy of the variants")
    assert header == ["variant", "top1", "top5", "runs", "Param. (M)", "Multiply-adds (G) at 224 x 224"]
    for row, *own, method in zip(rows, top1, top5, ("ResNet", "SA-Net"), strict=True):
        assert row[1:3] == [f"{statistics.mean(one):.1f} ± {statistics.stdev(one):.1f}" for one in own]
        printed = paper("table2_imagenet.csv", method=method, backbone="ResNet-50")
        # One cell of the paper is not rounded: 25.557 for SA-Net, which is 25.55774.
        assert float(row[4]) == pytest.approx(float(printed["params_m"]), abs=0.0011)
        assert row[5] == printed["gflops"]
    for absent in ("box", "mask", "AP", "lost to errors", "Images", "precision by recall"):
        assert not any(absent in title for title in (*page.titles, *page.captions))
    assert page.titles == ["Accuracy of the variants", "Accuracy by class", "Runs", "Provenance"]
    # Its own images are 200, those of the paper's ImageNet 50,000.
    assert page.captions == ["measured here"] * 2 + ["the paper, on ImageNet's validation images"] * 2
    assert page.notes == [
        f"the predictions are of {IMAGES} images, the paper's results of 50000: they are not put side by side"
    ]


def test_classes_curves_and_runs_are_on_the_page(drawn: None, tool: Tool, tmp_path: Path) -> None:
    metrics = [{"accuracy/top1": 30.0, "accuracy/top5": 60.25}, {"accuracy/top1": 41.5, "accuracy/top5": 70.0}]
    page = report(tool, study(tmp_path, accuracy=metrics))
    header, *rows = page.rows("Top1 by class, 10 of 12 classes")
    assert header == ["class", "images", "none", "SA"]
    for kind, count, *values in rows:
        images = np.asarray(int(kind) == DATA.labels)
        assert int(count) == images.sum()
        for value, (_, _, strength) in zip(values, STRENGTHS, strict=True):
            right = [(DATA.scores(strength, seed).argmax(1) == DATA.labels)[images].mean() for seed in (0, 1)]
            assert value == f"{100 * statistics.mean(right):.1f}"
    assert "By class no difference is told apart." in page.source
    header, *rows = page.rows("Accuracy")
    assert header == ["run", "variant", "seed", "epochs", "top1", "top5"]
    assert rows[0] == ["none/seed0", "none", "0", "2", "41.5", "70.0"]
    assert "top1 at the evaluations" in page.source
    assert "training loss" in page.source


def taken_for(predicted: list[list[int]], true: int, other: int) -> float:
    """The percentage of a class's images, all of the runs' together, that is taken for a class; counted one by one."""
    own = [one[i] for one in predicted for i in range(IMAGES) if DATA.labels[i] == true]
    return 100 * sum(one == other for one in own) / len(own)


@pytest.mark.parametrize("write", [as_pickle, as_csv])
def test_a_matrix_of_each_variant_says_what_images_are_taken_for(
    write: Callable[[Path, np.ndarray], Path], tool: Tool, tmp_path: Path
) -> None:
    names = ["<b>ear", *(f"animal {number}" for number in range(1, 12))]
    page = report(tool, study(tmp_path, write, test_dataloader__dataset__metainfo=dict(classes=names)))
    for title, (_, _, strength) in zip(("none", "SA"), STRENGTHS, strict=True):
        (corner, *columns), *rows = page.rows(f"Confusion of {title}")
        assert corner == "true class"
        assert columns == names
        predicted = [DATA.scores(strength, seed).argmax(1).tolist() for seed in (0, 1)]
        for true, (name, *cells) in enumerate(rows):
            assert name == f"{names[true]} ({np.sum(DATA.labels == true)})"
            shares = [taken_for(predicted, true, other) for other in range(12)]
            assert cells == [f"{share:.1f}" if share else "" for share in shares]
        assert len(rows) == 12
    assert "<b>ear" not in page.source
    assert page.rows("Top1 by class, 10 of 12 classes")[1][0] in names


def test_classes_that_no_image_has_are_columns(tool: Tool, tmp_path: Path) -> None:
    def write(path: Path, scores: np.ndarray) -> Path:
        found = [["dog", "owl"][int(own[0] > own[1])] for own in scores]
        return table(path, ["image", "label", "top1"], list(zip(DATA.names, ["dog", "cat"] * 100, found, strict=True)))

    page = report(tool, study(tmp_path, write))
    header, *rows = page.rows("Confusion of SA")
    assert header == ["true class", "cat", "dog", "owl"]
    assert [row[0] for row in rows] == ["cat (100)", "dog (100)"]
    assert all(sum(float(cell or 0) for cell in row[1:]) == pytest.approx(100, abs=0.11) for row in rows)
    assert rows[0][1] == ""


def test_of_many_classes_the_largest_confusions_are_listed(tool: Tool, tmp_path: Path) -> None:
    def write(path: Path, scores: np.ndarray) -> Path:
        """100 images of 25 classes; of 'kind 3' 3 of 4 are taken for 'kind 4', of 'kind 7' one for 'kind 9'."""
        odd = f"run {scores[0, 1]}"  # two runs with the same file would count as one
        lines = [[f"{i}.jpg", f"kind {i % 25}", f"kind {i % 25}", odd] for i in range(100)]
        for i in (3, 28, 53):
            lines[i][2] = "kind 4"
        lines[7][2] = "kind 9"
        if (scores != DATA.scores(1.0, 0)).any():  # in all runs but the first
            lines[32][2] = "kind 9"
        return table(path, ["image", "label", "top1", "top2"], lines)

    page = report(tool, study(tmp_path, write))
    assert "Confusion of" not in page.source
    assert page.rows("The 2 largest confusions of 25 classes") == [
        ["class", "taken for", "images", "none", "SA"],
        ["kind 3", "kind 4", "4", "75.0", "75.0"],
        ["kind 7", "kind 9", "4", "37.5", "50.0"],
    ]


@pytest.mark.long
def test_without_predictions_the_logs_are_shown_beside_the_paper_and_nothing_is_judged(
    tool: Tool, tmp_path: Path
) -> None:
    folders = study(tmp_path, without=True, accuracy=[{"accuracy/top1": 77.25, "accuracy/top5": 93.5}])
    page = report(tool, folders)
    assert page.verdicts == []
    assert page.notes == [
        "no run has results.pkl or results.json or results.csv (mim test mmpretrain CONFIG CHECKPOINT --out "
        "WORK_DIR/results.pkl writes it): nothing is judged"
    ]
    assert page.rows("Accuracy of the variants")[1][:4] == ["none", "77.2 ± 0.0", "93.5 ± 0.0", "2"]
    header, *rows = page.rows("Table 2: classification, accuracy")
    assert header == ["backbone", "attention", "runs", "top1 (paper)", "top5 (paper)"]
    assert rows == [
        ["ResNet-50", "none", "2", "77.2 (76.384)", "93.5 (92.908)"],
        ["ResNet-50", "SA", "2", "77.2 (77.724)", "93.5 (93.798)"],
    ]
    assert page.captions == ["measured here, beside the paper"] * 2
    # A part of the data set, or another one, is not the paper's.
    for change in (
        dict(test_dataloader__dataset__ann_file="meta/val_subset.txt"),
        dict(test_dataloader__dataset__indices=1000),
        dict(test_dataloader__dataset__split="train"),
        dict(test_dataloader__dataset__type="CustomDataset"),
    ):
        folders = study(tmp_path / next(iter(change)) / str(next(iter(change.values()))), without=True, **change)
        page = report(tool, folders[2:])
        assert "Beside the paper" not in page.titles
        assert page.captions[2:] == ["the paper, on ImageNet's validation images"] * 2


def test_an_ablation_stands_beside_its_own_row_of_the_paper(tool: Tool, tmp_path: Path) -> None:
    attention = dict(type="ShuffleAttention", transform="conv")
    backbone = dict(type="mmdet.AttentionResNet", depth=50, attention=attention)
    folder = write_classifier(tmp_path / "conv" / "seed0", backbone, strength=None)
    page = report(tool, [folder])
    printed = paper("table1_ablation_imagenet.csv", method="1x1_conv")
    row = ["ResNet-50", "SA, 1x1_conv", "1", f"40.0 ({printed['top1']})", f"70.0 ({printed['top5']})"]
    assert page.rows("Table 1: ablations, accuracy")[1:] == [row]
    assert "Table 2" not in page.source


@pytest.mark.parametrize(
    ("backbone", "row", "tables"),
    [
        (dict(attention=dict(type="SqueezeExcitation", bias=False, pool="max")), "Max", ("11: squeeze",)),
        (dict(attention=dict(type="SqueezeExcitation", bias=False, ratio=8)), "r = 8", ("10: ratio",)),
        (dict(attention=dict(type="SqueezeExcitation", bias=False, gate="tanh")), "Tanh", ("12: excitation",)),
        (
            dict(
                attention=dict(type="SqueezeExcitation", bias=False), stage_with_attention=[False, True, False, False]
            ),
            "SE Stage 3",
            ("13: stages",),
        ),
        (
            dict(attention=[None, dict(type="SqueezeExcitation", bias=False), None, None]),
            "SE Stage 3",
            ("13: stages",),
        ),
        (dict(attention=dict(type="SqueezeExcitation", bias=False), placement="pre"), "SE-PRE", ("14: placement",)),
        (
            dict(attention=dict(type="SqueezeExcitation", bias=False)),
            "SE",
            (
                "10: ratio",
                "11: squeeze",
                "16: squeeze",
                "12: excitation",
                "13: stages",
                "14: placement",
                "15: placement",
            ),
        ),
        # What the article has not.
        (dict(attention=[dict(type="SqueezeExcitation", bias=False, ratio=2**n) for n in (1, 2, 3, 4)]), "", ()),
        (dict(attention=dict(type="SqueezeExcitation", bias=False, ratio=8, pool="max")), "", ()),
        (dict(attention=dict(type="SqueezeExcitation", pool="max")), "", ()),
        (
            dict(
                type="WithAttention",
                module="mmdet.ResNet",
                attention={"layer*": dict(type="SqueezeExcitation", bias=False)},
            ),
            "",
            (),
        ),
    ],
)
def test_an_ablation_of_senet_stands_beside_its_own_rows(
    backbone: dict[str, Any], row: str, tables: tuple[str, ...], tool: Tool, tmp_path: Path
) -> None:
    whole = {**dict(type="mmdet.AttentionResNet", depth=50), **backbone}
    folder = write_classifier(tmp_path / "se" / "seed0", whole, strength=None)
    page = report(tool, [folder])
    assert re.findall(r"Table (\d+: \w+), accuracy", page.source) == list(tables)
    assert "Table 2: classification" not in page.source  # there SE has biases
    for name in tables:
        [found] = page.rows(rf"SENet \(arXiv 1709.01507\), Table {name}, accuracy")[1:]
        attention, _, own_row = found[1].partition(", ")
        assert attention == "SE"
        assert len(tables) > 1 or own_row == row
        line = paper("senet_imagenet.csv", table=name.split(":")[0], row=own_row)
        errors = (float(line[f"{name}_error"]) for name in ("top1", "top5"))
        assert found[2:] == [
            "1",
            *(f"{own} ({100 - error:.2f})" for own, error in zip(("40.0", "70.0"), errors, strict=True)),
        ]


def test_se_with_biases_is_in_the_tables_of_networks(tool: Tool, tmp_path: Path) -> None:
    page = report(tool, [write_classifier(tmp_path / "se" / "seed0", SE, strength=None)])
    assert page.rows("Table 2: classification, accuracy")[1][1] == "SE"
    assert page.rows(r"SENet \(arXiv 1709.01507\), Table 2: networks, accuracy")[1:] == [
        ["ResNet-50", "SE", "1", "40.0 (76.71)", "70.0 (93.38)"]
    ]
    assert page.source.count("SENet (arXiv") == 1


def test_all_images_of_imagenet_stand_beside_the_paper(tool: Tool, tmp_path: Path) -> None:
    lines = [[f"{number:05}.JPEG", number % 1000, number % 1000 + number % 3 // 2] for number in range(50_000)]

    def write(path: Path, _: np.ndarray) -> Path:
        return table(path, ["image", "label", "top1"], lines)

    folder = write_classifier(tmp_path / "none" / "seed0", NONE, write=write)
    page = report(tool, [folder])
    assert page.captions == ["measured here, beside the paper"] * 2
    assert page.notes == ["none is the only variant with predictions: nothing is compared"]
    # Two of three are right; top-5 is known from the log alone, and the predictions count.
    assert page.rows("Accuracy of the variants")[1][:3] == ["none", "66.7", "1"]
    assert page.rows("Table 2: classification, accuracy")[1][-2:] == ["40.0 (76.384)", "70.0 (92.908)"]


def test_top5_that_nobody_measured_has_no_column(tool: Tool, tmp_path: Path) -> None:
    page = report(tool, study(tmp_path, without=True, accuracy=[{"accuracy/top1": 61.5}]))
    assert page.rows("Accuracy of the variants")[0][:3] == ["variant", "top1", "runs"]
    assert page.rows("Accuracy")[0][-2:] == ["epochs", "top1"]


@pytest.mark.parametrize(
    ("pipeline", "shape"),
    [
        ([dict(type="RandomResizedCrop", scale=160), dict(type="RandomFlip", prob=0.5)], "160 x 160"),
        ([dict(type="ResizeEdge", scale=256), dict(type="CenterCrop", crop_size=192)], "192 x 192"),
        ([dict(type="ResizeEdge", scale=96, edge="short")], "96 x 96"),
        ([dict(type="mmpretrain.RandomCrop", crop_size=32, padding=4)], "32 x 32"),
        ([dict(type="RandomFlip", prob=0.5)], "224 x 224"),  # that of the test
    ],
    ids=str,
)
def test_costs_are_at_the_size_that_was_trained(tool: Tool, tmp_path: Path, pipeline: list[dict], shape: str) -> None:
    folder = write_classifier(
        tmp_path / "a" / "b",
        SA,
        strength=None,
        train_dataloader__dataset__pipeline=pipeline,
        model__head__num_classes=10,
    )
    header, row = report(tool, [folder]).rows("Accuracy of the variants")
    assert header[-1] == f"Multiply-adds (G) at {shape}"
    printed = paper("table2_imagenet.csv", method="SA-Net", backbone="ResNet-50")
    # A head with 10 classes has 990 x 2048 weights and 990 biases less than the paper's.
    assert float(row[-2]) == pytest.approx(float(printed["params_m"]) - 990 * 2049 / 1e6, abs=0.0011)
    share = int(shape.split()[0]) ** 2 / 224**2  # of the pixels, and so of the convolutions
    assert float(row[-1]) == pytest.approx(share * float(printed["gflops"]), rel=0.01)


def test_a_model_that_cannot_be_built_has_no_costs_and_is_judged(tool: Tool, tmp_path: Path) -> None:
    folders = study(tmp_path, model__backbone__type="mmpretrain.ResNet_CIFAR")
    page = report(tool, folders[:1])
    assert page.rows("Accuracy of the variants")[1][-2:] == ["missing", "missing"]


def test_detectors_and_classifiers_are_not_mixed(tool: Tool, tmp_path: Path) -> None:
    detector = write_run(tmp_path / "detector", write_data(tmp_path, made_up(4)))
    classifier = write_classifier(tmp_path / "classifier", NONE)
    status, _, errors = tool(TOOL, classifier, detector, "--out", tmp_path / "r.html")
    assert status == 1
    assert errors == (
        f"report: {classifier} is of a classifier, {detector} of a detector, whose metrics are not to be put side by "
        "side: give detectors or classifiers\n"
    )
    assert not (tmp_path / "r.html").exists()


def test_different_images_are_neither_judged_nor_put_side_by_side(tool: Tool, tmp_path: Path) -> None:
    folders = study(tmp_path, as_json)
    for change, said in (
        (lambda entries: entries[1:], "has other images than"),
        (lambda entries: [entries[0] | dict(label=11 - entries[0]["label"]), *entries[1:]], "is of class"),
    ):
        path = folders[3] / "results.json"
        kept = path.read_text()
        path.write_text(json.dumps(change(json.loads(kept))))
        page = report(tool, folders)
        path.write_text(kept)
        assert page.verdicts == []
        [note] = page.notes
        assert note.startswith("the runs are of different test sets, so that nothing is judged: ")
        assert said in note
        assert page.titles == ["Runs", "Provenance"]
    # What their configs say counts where predictions are missing.
    folders = study(tmp_path / "none", without=True)
    folders += study(tmp_path / "other", without=True, test_dataloader__dataset__split="test")
    page = report(tool, folders)
    [note] = page.notes[:1]
    assert note.startswith("the runs of image classifier ResNet-50 none are not of one variant")
    assert any("the runs are of different test sets" in note and "'val', 'test'" in note for note in page.notes)
    assert page.titles == ["Runs", "Provenance"]


@pytest.mark.long
def test_predictions_that_cannot_be_read_leave_their_run_out(tool: Tool, tmp_path: Path) -> None:
    folders = study(tmp_path)
    (folders[3] / "results.pkl").write_bytes(b"no pickle")
    page = report(tool, folders)
    assert page.notes[0].startswith(f"sa/seed1 is not judged: {folders[3] / 'results.pkl'}: ")
    assert "2 against 2" not in page.verdicts[0]
    assert "1 against 2 runs: not told apart: a single run" in page.verdicts[0]
    for folder in folders[:2]:
        (folder / "results.pkl").write_text('{"accuracy/top1": 61.5}')
    page = report(tool, folders)
    assert page.verdicts == []
    assert any("none, with which the others are compared, has no predictions" in note for note in page.notes)


@pytest.mark.long
def test_predictions_that_are_missing_are_named(tool: Tool, tmp_path: Path) -> None:
    folders = study(tmp_path)
    (folders[3] / "results.pkl").unlink()
    page = report(tool, folders)
    assert page.notes[0] == (
        "not judged, since results.pkl or results.json or results.csv is missing: sa/seed1 (mim test mmpretrain CONFIG "
        "CHECKPOINT --out WORK_DIR/results.pkl writes it)"
    )
    assert "1 against 2 runs: not told apart: a single run" in page.verdicts[0]


@pytest.mark.long
def test_what_would_count_twice_does_not(tool: Tool, tmp_path: Path) -> None:
    folders = study(tmp_path)
    again = write_classifier(tmp_path / "again" / "seed2", SA, 2)
    (again / "results.pkl").write_bytes((folders[2] / "results.pkl").read_bytes())
    page = report(tool, [*folders, again])
    said = "again/seed2 does not count: it has the same predictions as sa/seed0, which is of the same variant"
    assert said in page.notes
    assert "2 against 2 runs" in page.verdicts[0]


def test_what_float32_makes_of_all_images_is_all(tool: Tool, tmp_path: Path) -> None:
    hundred = float(np.nextafter(np.float32(100), np.float32(200)))
    assert hundred > 100
    folder = write_classifier(tmp_path / "a" / "b", SA, strength=None, accuracy=[{"accuracy/top1": hundred}])
    page = report(tool, [folder])
    assert page.rows("Accuracy of the variants")[1][1] == "100.0"
    assert len(page.notes) == 1  # about predictions


def test_lines_that_no_evaluation_writes_are_left_out(tool: Tool, tmp_path: Path) -> None:
    folder = write_classifier(tmp_path / "a" / "b", SA, strength=None)
    [log] = folder.glob("*/vis_data/scalars.json")
    odd = ('{"accuracy/top1": 101.0, "step": 2}', '{"accuracy/top1": "much", "step": 2}', '{"accuracy/top1": NaN')
    log.write_text("\n".join([log.read_text(), *odd]))
    page = report(tool, [folder])
    assert any(note.endswith("3 broken lines of its log were skipped") for note in page.notes)
    assert page.rows("Accuracy")[1][-2:] == ["40.0", "70.0"]
    log.write_text('{"coco/bbox_mAP": 0.5, "step": 1}\n{"loss": 1.0, "step": 1}')
    status, _, errors = tool(TOOL, folder, "--out", tmp_path / "none.html")
    assert status == 1
    assert f"{folder}: no epoch was finished and evaluated" in errors
