"""The images on which several models differ most, with ground truth and detections drawn into them."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
from pycocotools import mask
from pycocotools.coco import COCO

from sa_mmdet.coco_format import load_annotations, load_results

from .runs import Run

Detections = Mapping[int, Sequence[Mapping[str, Any]]]  # by the image's id
_LOWEST_SCORE = 0.3  # detections with a lower score are neither drawn nor counted
_WIDTH = 480  # of an image in the gallery, in pixels
_COLOURS = ((60, 20, 220), (0, 170, 0), (230, 120, 0), (200, 0, 200), (0, 140, 255), (160, 160, 0))


def gallery(annotations: str | Path, runs: Sequence[Run], task: str, count: int) -> list[dict[str, Any]]:
    """Draw the images for which the number of correct detections differs most between runs.

    Args:
        annotations: The file of COCO annotations.
        runs: Runs that have results for the task.
        task: 'bbox' or 'segm'.
        count: The largest number of images.

    Returns:
        For each image its 'name' and its 'panels', one for the ground truth and one per run, each with a 'title' and
        the image as a data URL in 'data'.
    """
    coco = load_annotations(annotations)
    found = [_by_image(load_results(str(run.results(task)), coco)) for run in runs]
    truth = {image: coco.imgToAnns.get(image, []) for image in coco.getImgIds()}
    balances = [{image: _balance(truth[image], own.get(image, [])) for image in truth} for own in found]
    spread = {image: max(own[image] for own in balances) - min(own[image] for own in balances) for image in truth}
    folder = _image_folder(runs[0])
    shown: list[dict[str, Any]] = []
    for image in sorted(truth, key=lambda image: -spread[image]):
        if len(shown) == count:
            break
        path = folder / coco.imgs[image]["file_name"]
        pixels = cv2.imread(str(path))
        if pixels is None:
            continue
        panels = [dict(title="ground truth", data=_drawn(pixels, truth[image], coco))]
        for run, own, balance in zip(runs, found, balances, strict=True):
            title = f"{run.name}: {balance[image]:+d} correct minus wrong"
            panels.append(dict(title=title, data=_drawn(pixels, own.get(image, []), coco)))
        shown.append(dict(name=path.name, panels=panels))
    return shown


def _by_image(entries: Sequence[dict[str, Any]]) -> Detections:
    found: dict[int, list[dict[str, Any]]] = {}
    for entry in entries:
        if entry["score"] >= _LOWEST_SCORE and "bbox" in entry:
            found.setdefault(entry["image_id"], []).append(entry)
    return found


def _image_folder(run: Run) -> Path:
    dataset = run.cfg.test_dataloader.dataset
    return Path(dataset.get("data_root") or "") / (dataset.get("data_prefix") or {}).get("img", "")


def _balance(truth: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Any]]) -> int:
    """The number of detections that match an object of their class at an IoU of 0.5, minus the number of others."""
    free = [one for one in truth if not one.get("iscrowd")]
    correct = 0
    for entry in sorted(found, key=lambda entry: -entry["score"]):
        same = [one for one in free if one["category_id"] == entry["category_id"]]
        matches = [one for one in same if mask.iou([entry["bbox"]], [one["bbox"]], [0]) >= 0.5]
        if matches:
            free.remove(matches[0])
            correct += 1
    return 2 * correct - len(found)


def _drawn(image: Any, entries: Sequence[Mapping[str, Any]], coco: COCO) -> str:
    """The image in its size for the gallery, with boxes drawn into it, as a data URL."""
    scale = _WIDTH / image.shape[1]
    small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    for entry in entries:
        left, top, width, height = (round(scale * value) for value in entry["bbox"])
        colour = _COLOURS[entry["category_id"] % len(_COLOURS)]
        cv2.rectangle(small, (left, top), (left + width, top + height), colour, 2)
        label = coco.cats[entry["category_id"]]["name"] + (f" {entry['score']:.2f}" if "score" in entry else "")
        cv2.putText(small, label, (left + 2, max(top - 3, 10)), cv2.FONT_HERSHEY_SIMPLEX, 0.4, colour, 1, cv2.LINE_AA)
    _, data = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 80])
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()
