"""One HTML page, needing no network, of what a set of trainings reached, beside the paper's figures."""

import base64
import csv
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import jinja2
import numpy as np
from pycocotools import mask
from pycocotools.coco import COCO

from sa_mmdet.analysis.complexity import analyze
from sa_mmdet.coco_format import annotations as coco_files
from sa_mmdet.version import __version__

from . import comparison
from .runs import Run

_METRICS = ("mAP", "mAP_50", "mAP_75", "mAP_s", "mAP_m", "mAP_l")
_COLUMNS = ("ap", "ap50", "ap75", "ap_s", "ap_m", "ap_l")
_HEADER = ("AP", "AP50", "AP75", "APS", "APM", "APL")
_MISSING = "missing"
_SHOWN_SCORE = 0.3
_WIDTH = 480  # pixels of a picture in the gallery


def build_report(
    runs: Sequence[Run],
    tables: Path,
    skipped: Sequence[str] = (),
    speed: Mapping[str, Any] | None = None,
    resamples: int = 1000,
    pictures: int = 6,
    command: str = "",
) -> str:
    """The page's text.

    Args:
        runs: The trainings; the first one's arm is what the others are compared with.
        tables: Folder of the paper's tables as CSV.
        skipped: Sentences on what was left out.
        speed: What the benchmark tool wrote as JSON.
        resamples: Of the bootstrap.
        pictures: In the gallery.
        command: What made the page.
    """
    judged, notes = _judge(runs, resamples, pictures)
    template = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    ).get_template("report.html")
    return template.render(
        version=__version__,
        command=command,
        skipped=[*skipped, *notes, *(f"{run.name}: {note}" for run in runs for note in run.notes)],
        runs=_table_of_runs(runs),
        paper=[_paper_table(runs, tables, *which) for which in _PAPER],
        speed=_table_of_speed(speed),
        curves=_curves(runs),
        judged=judged,
        provenance=[dict(run=run.name, config=run.cfg.pretty_text, **run.provenance) for run in runs],
    )


def _percent(value: float | None) -> str:
    return _MISSING if value is None or not math.isfinite(value) or value < 0 else f"{100 * value:.1f}"


def _figures(run: Run, task: str) -> list[float | None]:
    last = run.figures[-1][1]
    return [last.get(f"coco/{task}_{name}") for name in _METRICS]


def _table_of_runs(runs: Sequence[Run]) -> dict[str, Any]:
    header = ["run", "detector", "backbone", "attention", "seed", "epochs", "Param. (M)", "GFLOPs"]
    header += [f"box {name}" for name in _HEADER]
    masks = any(any(value is not None for value in _figures(run, "segm")) for run in runs)
    header += [f"mask {name}" for name in _HEADER] if masks else []
    costs: dict[str, tuple[str, str]] = {}
    rows = []
    for run in runs:
        if run.arm not in costs:
            costs[run.arm] = _cost(run)
        row = [run.name, run.family, run.backbone, run.attention, run.provenance.get("seed", _MISSING)]
        row += [str(run.figures[-1][0]), *costs[run.arm]]
        for task in ("bbox", "segm") if masks else ("bbox",):
            row += [_percent(value) for value in _figures(run, task)]
        rows.append(row)
    return dict(header=header, rows=rows)


def _cost(run: Run) -> tuple[str, str]:
    """By the paper's rules, at 800 x 1280."""
    try:
        found = analyze(run.cfg.model, convention="paper")
    except ValueError:
        return _MISSING, _MISSING
    return f"{found.trainable / 1e6:.2f}", f"{found.total / 1e9:.2f}"


_PAPER = (
    ("Table 3: object detection, box AP", "table3_coco_detection.csv", "bbox"),
    ("Table 4: instance segmentation with Mask R-CNN, mask AP", "table4_coco_instance_segmentation.csv", "segm"),
)


def _paper_table(runs: Sequence[Run], tables: Path, title: str, name: str, task: str) -> dict[str, Any]:
    """The paper's rows, and behind each figure ours: the mean of the arm's runs on COCO val2017."""
    with (tables / name).open(newline="") as file:
        lines = list(csv.DictReader(file))
    header = ["detector", "backbone", "attention", "runs"]
    for metric in _HEADER:
        header += [f"{metric} paper", f"{metric} measured"]
    rows = []
    for line in lines:
        key = (line.get("detector", "Mask R-CNN"), line["backbone"], line["attention"])
        own = [run for run in runs if run.on_coco and (run.family, run.backbone, run.attention) == key]
        row = [*key, str(len(own)) if own else _MISSING]
        for i, column in enumerate(_COLUMNS):
            values = [value for run in own if (value := _figures(run, task)[i]) is not None]
            row += [line[column] or _MISSING, _percent(statistics.mean(values)) if values else _MISSING]
        rows.append(row)
    return dict(title=title, header=header, rows=rows)


def _table_of_speed(speed: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if speed is None:
        return None
    header = ["arm", "image", "batch", "inference", "training step", "peak memory"]
    rows = []
    for run in speed["runs"]:
        for arm, found in run["results"].items():
            cells = [
                f"{found[mode]['ratio_paired']:.2f} ({found[mode]['min_ms']:.0f} ms)"
                for mode in ("inference", "training")
            ]
            memory = f"{found['memory']['ratio']:.2f}" if "memory" in found else _MISSING
            rows.append([arm, " x ".join(map(str, run["shape"])), str(run["batch"]), *cells, memory])
    title = f"{speed['machine']}, {speed['threads']} threads, PyTorch {speed['torch']}; ratios to the plain network"
    return dict(title=title, header=header, rows=rows)


def _svg(draw: Any, panels: int = 1) -> str:
    """A figure as SVG, in a grey that reads on white and on black."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    grey = "#808080"
    style = dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), grey)
    with pyplot.rc_context({**style, "svg.fonttype": "none", "font.size": 9}):
        figure, axes = pyplot.subplots(1, panels, figsize=(4.6 * panels, 3.2), squeeze=False, constrained_layout=True)
        draw(*axes[0])
        for axis in axes[0]:
            axis.set_facecolor("none")
            axis.grid(alpha=0.25)
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True)
        pyplot.close(figure)
    return text.getvalue()[text.getvalue().index("<svg") :]


def _by_arm(runs: Sequence[Run]) -> dict[str, list[Run]]:
    arms: dict[str, list[Run]] = {}
    for run in runs:
        arms.setdefault(run.arm, []).append(run)
    return arms


def _curves(runs: Sequence[Run]) -> str:
    def draw(loss: Any, figure: Any) -> None:
        for number, (name, arm) in enumerate(_by_arm(runs).items()):
            for run in arm:
                style: dict[str, Any] = dict(color=f"C{number}", label=name if run is arm[0] else None)
                if run.losses:
                    loss.plot(*zip(*run.losses, strict=True), linewidth=1, **style)
                points = [(epoch, 100 * box["coco/bbox_mAP"]) for epoch, box in run.figures if "coco/bbox_mAP" in box]
                if points:
                    figure.plot(*zip(*points, strict=True), marker=".", **style)
        loss.set_xlabel("iteration")
        loss.set_ylabel("training loss")
        figure.set_xlabel("epoch")
        figure.set_ylabel("box AP")
        figure.legend(fontsize=7, framealpha=0)

    return _svg(draw, 2)


def _judge(runs: Sequence[Run], resamples: int, pictures: int) -> tuple[list[dict[str, Any]], list[str]]:
    """Significance, precision by recall, gains by class and the gallery, where results and annotations are at hand."""
    found: list[dict[str, Any]] = []
    notes = []
    for task in comparison.TASKS:
        arms = _by_arm([run for run in runs if run.results(task) is not None])
        if not arms:
            continue
        first = next(iter(arms.values()))[0]
        own = {run.annotations for arm in arms.values() for run in arm}
        if len(own) > 1 or not first.annotations.is_file():
            what = "are of different images" if len(own) > 1 else f"cannot be judged without {first.annotations}"
            notes.append(f"the {comparison.TASKS[task]} results {what}: no significance, no pictures")
            continue
        try:
            found.append(_judged(task, arms, resamples, pictures if not found else 0))
        except ValueError as error:
            notes.append(str(error))
    if not found:
        notes.append("no run has results.bbox.json or results.segm.json (run_comparison keeps them): no significance")
    return found, notes


def _judged(task: str, arms: dict[str, list[Run]], resamples: int, pictures: int) -> dict[str, Any]:
    names, order = list(arms), [run for arm in arms.values() for run in arm]
    annotations = str(order[0].annotations)
    files = [str(run.results(task)) for run in order]
    evaluations = dict(
        zip((run.name for run in order), comparison.evaluate_files(annotations, files, task), strict=True)
    )
    samples = dict(zip(evaluations, comparison.bootstrap(list(evaluations.values()), resamples, 0), strict=True))
    means = [
        comparison.averaged([evaluations[run.name] for run in arm], [samples[run.name] for run in arm])
        for arm in arms.values()
    ]
    coco = coco_files.load_annotations(annotations)
    count = len(coco.getImgIds())
    sentences = []
    for name, row in zip(names[1:], comparison.differences([m[0] for m in means], [m[1] for m in means]), strict=True):
        evidence = f"{count} images, {len(arms[name])} against {len(arms[names[0]])} runs"
        interval = "95% interval over the images"
        sentences.append(comparison.sentence((name, names[0]), task, "AP", row, interval, evidence))

    def draw(axis: Any) -> None:
        for name, arm in arms.items():
            curves = [evaluations[run.name].curve for run in arm]
            axis.plot(np.linspace(0, 1, len(curves[0])), np.mean(curves, 0), label=name)
        axis.set_xlabel("recall")
        axis.set_ylabel("precision at IoU 0.5, mean of classes")
        axis.legend(fontsize=7, framealpha=0)

    classes = list(evaluations[order[0].name].per_class)
    rows = []
    for kind in classes:
        values = [statistics.mean(evaluations[run.name].per_class[kind] for run in arm) for arm in arms.values()]
        gains = [f"{100 * (value - values[0]):+.1f}" if math.isfinite(value) else _MISSING for value in values[1:]]
        rows.append([kind, *(_percent(value) for value in values), *gains])
    return dict(
        task=comparison.TASKS[task],
        sentences=sentences,
        precision=_svg(draw),
        classes=dict(header=["class", *names, *(f"{name} - first" for name in names[1:])], rows=rows),
        gallery=_gallery(coco, [arm[0] for arm in arms.values()], task, pictures) if pictures else [],
    )


def _gallery(coco: COCO, runs: Sequence[Run], task: str, pictures: int) -> list[dict[str, Any]]:
    """The pictures on which the arms' first runs differ most: ground truth and all of them."""
    found = []
    for run in runs:
        by_image: dict[int, list[dict[str, Any]]] = {}
        for entry in coco_files.load_results(str(run.results(task)), coco):
            if entry["score"] >= _SHOWN_SCORE and "bbox" in entry:
                by_image.setdefault(entry["image_id"], []).append(entry)
        found.append(by_image)
    truth = {image: coco.imgToAnns.get(image, []) for image in coco.getImgIds()}
    right = [{image: _balance(truth[image], arm.get(image, [])) for image in truth} for arm in found]
    spread = {image: max(arm[image] for arm in right) - min(arm[image] for arm in right) for image in truth}
    order = sorted(truth, key=lambda image: -spread[image])
    folder = _image_folder(runs[0])
    shown: list[dict[str, Any]] = []
    for image in order:
        if len(shown) == pictures:
            break
        path = folder / coco.imgs[image]["file_name"]
        picture = cv2.imread(str(path))
        if picture is None:
            continue
        panels = [("ground truth", _drawn(picture, truth[image], coco))]
        for run, arm, balance in zip(runs, found, right, strict=True):
            title = f"{run.name}: {balance[image]:+d} right less wrong"
            panels.append((title, _drawn(picture, arm.get(image, []), coco)))
        shown.append(dict(name=path.name, panels=[dict(title=title, data=data) for title, data in panels]))
    return shown


def _image_folder(run: Run) -> Path:
    dataset = run.cfg.test_dataloader.dataset
    return Path(dataset.get("data_root") or "") / (dataset.get("data_prefix") or {}).get("img", "")


def _balance(truth: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Any]]) -> int:
    """Detections that match an object of their class at IoU 0.5, less those that match none."""
    free = [one for one in truth if not one.get("iscrowd")]
    right = 0
    for entry in sorted(found, key=lambda entry: -entry["score"]):
        same = [one for one in free if one["category_id"] == entry["category_id"]]
        matches = [one for one in same if mask.iou([entry["bbox"]], [one["bbox"]], [0]) >= 0.5]
        if matches:
            free.remove(matches[0])
            right += 1
    return 2 * right - len(found)


def _drawn(picture: Any, entries: Sequence[Mapping[str, Any]], coco: COCO) -> str:
    """The picture with boxes, small, as a data address."""
    scale = _WIDTH / picture.shape[1]
    small = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    for entry in entries:
        left, top, width, height = (round(scale * value) for value in entry["bbox"])
        colour = _COLOURS[entry["category_id"] % len(_COLOURS)]
        cv2.rectangle(small, (left, top), (left + width, top + height), colour, 2)
        label = coco.cats[entry["category_id"]]["name"] + (f" {entry['score']:.2f}" if "score" in entry else "")
        cv2.putText(small, label, (left + 2, max(top - 3, 10)), cv2.FONT_HERSHEY_SIMPLEX, 0.4, colour, 1, cv2.LINE_AA)
    _, data = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 80])
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()


_COLOURS = ((60, 20, 220), (0, 170, 0), (230, 120, 0), (200, 0, 200), (0, 140, 255), (160, 160, 0))
