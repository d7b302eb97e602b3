"""Result files: what to call them, and whether they belong to the images that they are judged on."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pycocotools.coco import COCO

from sa_mmdet.coco_format import read_annotations
from sa_mmdet.messages import short

from .evaluators import coco_evaluator
from .runs import read_recorded_config

_MENTIONED, _DOUBTFUL = 0.1, 0.5  # shares of images without a detection
_BEYOND = 0.01  # share of boxes that reach beyond their images
_OTHER_IMAGES = "do these results belong to other images?"


def names_of(paths: Sequence[str | Path]) -> list[str]:
    """Name result files, so that no two have the same name.

    Args:
        paths: The files. Those of equal names, such as results.bbox.json, are named by their folders.
    """
    stems = [Path(path).name.removesuffix(".json") for path in paths]
    counts = Counter(stems)
    folders = [Path(path).resolve().parent for path in paths]
    same = [folder for folder, stem in zip(folders, stems, strict=True) if counts[stem] > 1]
    common = os.path.commonpath(same) if same else ""
    named = [
        folder.relative_to(common).as_posix() if counts[stem] > 1 and folder != Path(common) else stem
        for folder, stem in zip(folders, stems, strict=True)
    ]
    seen: Counter[str] = Counter()
    for number, name in enumerate(named):
        seen[name] += 1
        named[number] = f"{name} ({seen[name]})" if seen[name] > 1 else name
    return named


def check_images(
    path: str | Path, entries: Sequence[Mapping[str, Any]], coco: COCO, annotations: str | Path
) -> list[str]:
    """Check that detections belong to the images of the annotations, whose ids alone may coincide with others.

    Args:
        path: The result file. A config that a test recorded in or below its folder says on what it was tested.
        entries: Its detections.
        coco: The annotations.
        annotations: Their file.

    Returns:
        What raises a doubt, one sentence each.

    Raises:
        ValueError: The run's own annotations give other images for the same ids.
    """
    if not entries:
        return [f"{path}: has no detections"]
    said = []
    detected = {entry["image_id"] for entry in entries}
    without = len(coco.imgs) - len(detected)
    if without >= _MENTIONED * len(coco.imgs):
        doubt = f": {_OTHER_IMAGES}" if without >= _DOUBTFUL * len(coco.imgs) else ""
        said.append(f"{path}: {without} of {len(coco.imgs)} images have no detection{doubt}")
    beyond = sum(_reaches_beyond(entry["bbox"], coco.imgs[entry["image_id"]]) for entry in entries if "bbox" in entry)
    if beyond >= _BEYOND * len(entries):
        said.append(f"{path}: {beyond} of {len(entries)} boxes reach beyond their images: {_OTHER_IMAGES}")
    tested = _tested_on(Path(path))
    if tested is None or Path(tested).resolve() == Path(annotations).resolve():
        return said
    if not os.path.isfile(tested):
        return [*said, f"{path}: its run was tested on {tested}, which is not here; it is judged on {annotations}"]
    own = {image["id"]: image for image in read_annotations(tested)["images"]}
    for image in sorted(detected, key=str):
        names = [_name(images.get(image)) for images in (own, coco.imgs)]
        if names[0] != names[1]:
            raise ValueError(
                f"{path}: its run was tested on {tested}, where image {short(image)} is {names[0]}; it is {names[1]} "
                f"in {annotations}: give the annotations of the same images, or copy the results out of the run's "
                "folder if they are"
            )
    return said


def _name(image: Mapping[str, Any] | None) -> str:
    """The name of an image without its folder and ending, which copies of a data set may change."""
    return "not there" if image is None else short(Path(image.get("file_name", "")).stem)


def _reaches_beyond(box: Sequence[float], image: Mapping[str, Any]) -> bool:
    x, y, width, height = box
    across, down = (2 + 0.01 * image[side] for side in ("width", "height"))  # pixels
    return min(x + across, y + down) < 0 or x + width > image["width"] + across or y + height > image["height"] + down


def _tested_on(path: Path) -> str | None:
    """The annotations that the run which wrote a result file was tested on, by the config that MMEngine recorded."""
    found = sorted(_recorded(path), key=lambda one: one[:2])
    return found[-1][2] if found else None


def _recorded(path: Path) -> Iterator[tuple[int, str, str]]:
    """For each recorded config: how surely it is that of the results' test, the time of its start, its annotations."""
    prefix = path.name.removesuffix(".json").rpartition(".")[0]
    # run_comparison's folder for tests, that of test.py or train.py, and those below the one with the results.
    for certain, pattern in ((2, "new/*"), (1, "*"), (0, "*/*")):
        for config in path.parent.glob(f"{pattern}/vis_data/config.py"):
            try:
                evaluator = coco_evaluator(read_recorded_config(config))
            except ValueError:
                continue
            if evaluator is None:
                continue
            written = evaluator[1].get("outfile_prefix")
            is_own = isinstance(written, str) and Path(written).resolve() == path.resolve().parent / prefix
            if is_own or certain:
                yield 3 if is_own else certain, config.parts[-3], evaluator[1]["ann_file"]
