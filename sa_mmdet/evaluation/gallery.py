"""The images on which several models differ most, with ground truth and detections drawn into them."""

import base64
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask
from pycocotools.coco import COCO

from sa_mmdet.coco_format import Detections, leads_inside, load_annotations, use_results
from sa_mmdet.messages import short

from .processes import in_processes, no_collection
from .runs import Run

Counts = dict[Any, tuple[int, int, int]]  # by the image's id: right and wrong detections, and missed objects
_LOWEST_SCORE = 0.3  # detections with a lower score are neither drawn nor counted
_WIDTH, _HEIGHT = 640, 1920  # the largest size of an image in the gallery, in pixels
_FAR = 1_000_000  # the largest coordinate that OpenCV can draw, in pixels
_COLOURS = ((60, 20, 220), (0, 170, 0), (230, 120, 0), (200, 0, 200), (0, 140, 255), (160, 160, 0))


def gallery(
    annotations: str | Path, runs: Sequence[Run], names: Sequence[str], task: str, count: int
) -> tuple[list[dict[str, Any]], list[str]]:
    """Draw the images for which right less wrong detections differ most between runs.

    Args:
        annotations: The file of COCO annotations.
        runs: Runs that have results for the task.
        names: What the captions call them.
        task: 'bbox' or 'segm'.
        count: The largest number of images.

    Returns:
        For each image its 'name' and its 'panels', one for the ground truth and one per run, each with a 'title' and
        the image as a data URL in 'data'; and notes about images that are not shown.
    """
    with no_collection():
        coco = load_annotations(annotations)
    truth = {image: coco.imgToAnns.get(image, []) for image in coco.getImgIds()}

    def counted(path: str) -> tuple[Detections, Counts]:
        found = _likely(use_results(path, coco, Detections.joined))
        rows = _by_image(found)
        return found, {image: _counts(truth[image], found, rows.get(image, [])) for image in truth}

    paths = [str(run.results(task)) for run in runs]
    answers = in_processes(counted, paths, lambda path: f"{path}: its comparison with the images")
    counts = [own for _, own in answers]
    balances = {image: [right - wrong for right, wrong, _ in (own[image] for own in counts)] for image in truth}
    spread = {image: max(own) - min(own) for image, own in balances.items()}
    folder, root = _image_folder(runs[0]), _root(runs[0])
    if _is_in(annotations, runs[0].folder) and not _is_in(folder, runs[0].folder):
        return [], []  # whoever made the work directory chose both, and could choose any image of this machine
    shown: list[dict[str, Any]] = []
    elsewhere = []
    for image in sorted(truth, key=lambda image: -spread[image]):
        if len(shown) == count:
            break
        name = coco.imgs[image].get("file_name", "")
        path = folder / name
        if not leads_inside(name, folder, root):
            elsewhere.append(name)
            continue
        pixels = cv2.imread(str(path))
        if pixels is None:
            continue
        objects = sum(not one.get("iscrowd") for one in truth[image])
        title = f"ground truth: {objects} object{'' if objects == 1 else 's'}"
        panels = [dict(title=title, data=_drawn(pixels, truth[image], coco))]
        for name, (found, numbers) in zip(names, answers, strict=True):
            right, wrong, missed = numbers[image]
            title = f"{name}: {right} right, {wrong} wrong, {missed} missed"
            panels.append(dict(title=title, data=_drawn(pixels, _entries(found, image), coco)))
        shown.append(dict(name=path.name, panels=panels))
    notes = []
    if elsewhere:
        reason = "are not shown, since their names lead out of the data set's folder"
        notes.append(f"{annotations}: images such as {short(elsewhere[0])} {reason}")
    if not shown and not elsewhere:
        notes.append(
            f"no image is shown, since none is in {short(str(folder))}: name the data set's folder with --data-root"
        )
    return shown, notes


def _likely(found: Detections) -> Detections:
    """The detections that are counted and drawn: their scores are not too low, and they have boxes."""
    if found.boxes is None:
        return Detections.of([])
    [chosen] = np.nonzero(found.scores >= _LOWEST_SCORE)
    images, categories = ([ids[row] for row in chosen] for ids in (found.images, found.categories))
    return Detections(images, categories, found.scores[chosen], found.boxes[chosen], None)


def _by_image(found: Detections) -> dict[Any, list[int]]:
    """For each image the numbers of its detections, by descending scores."""
    rows: dict[Any, list[int]] = {}
    for row in np.argsort(-found.scores, kind="stable").tolist():
        rows.setdefault(found.images[row], []).append(row)
    return rows


def _entries(found: Detections, image: Any) -> list[dict[str, Any]]:
    """The detections of an image as COCO's entries, in the order of the file."""
    boxes: Any = found.boxes
    return [
        dict(category_id=found.categories[row], score=found.scores[row], bbox=boxes[row].tolist())
        for row, own in enumerate(found.images)
        if own == image
    ]


def _image_folder(run: Run) -> Path:
    dataset = _dataset(run)
    prefix = dataset.get("data_prefix")
    inner = _text(prefix if isinstance(prefix, dict) else {}, "img")
    if run.data_root is not None and not inner:
        return run.data_root
    return run.place(str(Path(_text(dataset, "data_root"), inner)))


def _root(run: Run) -> Path:
    """The data set's folder, out of which no image is shown."""
    return run.data_root or Path(_text(_dataset(run), "data_root") or _image_folder(run))


def _dataset(run: Run) -> Mapping[str, Any]:
    loader = run.cfg.get("test_dataloader")
    dataset = loader.get("dataset") if isinstance(loader, dict) else None
    return dataset if isinstance(dataset, dict) else {}


def _text(settings: Mapping[str, Any], key: str) -> str:
    value = settings.get(key)
    return value if isinstance(value, str) and "\0" not in value else ""


def _is_in(path: str | Path, folder: Path) -> bool:
    return Path(path).resolve().is_relative_to(folder.resolve())


def _counts(truth: Sequence[Mapping[str, Any]], found: Detections, rows: Sequence[int]) -> tuple[int, int, int]:
    """How many detections match an object of their class at an IoU of 0.5, how many do not, and how many are missed."""
    objects = [one for one in truth if not one.get("iscrowd")]
    boxes: Any = found.boxes
    if not objects or not rows:
        return 0, len(rows), len(objects)
    overlaps = mask.iou(boxes[rows], np.array([one["bbox"] for one in objects], np.float64), [0] * len(objects))
    free = set(range(len(objects)))
    for row, near in zip(rows, (overlaps >= 0.5).tolist(), strict=True):
        category = found.categories[row]
        same = (number for number in sorted(free) if near[number] and objects[number]["category_id"] == category)
        free.discard(next(same, -1))
    right = len(objects) - len(free)
    return right, len(rows) - right, len(free)


def _drawn(image: Any, entries: Sequence[Mapping[str, Any]], coco: COCO) -> str:
    """The image in its size for the gallery, with boxes drawn into it, as a data URL."""
    scale = min(_WIDTH / image.shape[1], _HEIGHT / image.shape[0])
    small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    colours = dict(zip(coco.cats, itertools.cycle(_COLOURS), strict=False))
    for entry in entries:
        left, top, width, height = (round(scale * max(-_FAR, min(value, _FAR))) for value in entry["bbox"])
        colour = colours.get(entry["category_id"], _COLOURS[0])
        cv2.rectangle(small, (left, top), (left + width, top + height), colour, 2)
        kind = coco.cats.get(entry["category_id"])  # None where the file does not list it
        label = str(entry["category_id"] if kind is None else kind["name"])
        label += f" {entry['score']:.2f}" if "score" in entry else ""
        cv2.putText(small, label, (left + 2, max(top - 3, 10)), cv2.FONT_HERSHEY_SIMPLEX, 0.4, colour, 1, cv2.LINE_AA)
    _, data = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 80])
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()
