"""Random annotations and detections in COCO's format."""

from typing import Any

import numpy as np
from pycocotools.mask import encode


def made_up(images: int = 30, categories: int = 4, seed: int = 0) -> dict[str, Any]:
    """Make annotations of objects of all sizes, some of them crowds; the last category and image have no objects."""
    generator = np.random.default_rng(seed)
    annotations: list[dict[str, Any]] = []
    for image in range(1, images):
        for _ in range(generator.integers(1, 6)):
            width, height = generator.choice([12, 40, 130], 2) * generator.uniform(0.8, 1.2, 2)
            x, y = generator.uniform(0, 300, 2)
            box = [float(v) for v in (x, y, width, height)]
            polygon = [x, y, x + width, y, x + width, y + height, x, y + height]
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=image,
                    category_id=int(generator.integers(1, categories)),
                    bbox=box,
                    area=box[2] * box[3],
                    segmentation=[[float(v) for v in polygon]],
                    iscrowd=int(generator.random() < 0.05),
                )
            )
    for annotation in annotations:
        if annotation["iscrowd"]:
            annotation["segmentation"] = dict(counts=[0, 480 * 640], size=[480, 640])
    return dict(
        images=[dict(id=i, file_name=f"{i}.jpg", height=480, width=640) for i in range(1, images + 1)],
        categories=[dict(id=i, name=f"kind {i}") for i in range(1, categories + 1)],
        annotations=annotations,
    )


def rectangle(x: float, y: float, width: float, height: float, image: dict[str, Any]) -> dict[str, Any]:
    """The run-length code of a rectangle's mask."""
    mask = np.zeros((image["height"], image["width"]), np.uint8, order="F")
    mask[round(y) : round(y + height), round(x) : round(x + width)] = 1
    code = encode(mask)
    return dict(size=[int(n) for n in code["size"]], counts=code["counts"].decode())


def detections(truth: dict[str, Any], noise: float, seed: int = 1) -> list[dict[str, Any]]:
    """Make detections from annotations: up to two per object, with noise in their boxes, some of a wrong class."""
    generator = np.random.default_rng(seed)
    found = []
    for annotation in truth["annotations"]:
        for _ in range(generator.integers(0, 3)):
            box = np.array(annotation["bbox"]) * (1 + noise * generator.normal(size=4))
            x, y, width, height = (float(v) for v in np.maximum(box, 1))
            found.append(
                dict(
                    image_id=annotation["image_id"],
                    category_id=annotation["category_id"]
                    if generator.random() < 0.9
                    else int(generator.integers(1, 5)),
                    bbox=[x, y, width, height],
                    segmentation=rectangle(x, y, width, height, truth["images"][0]),
                    score=round(float(generator.random()), 2),  # rounded, so that some scores are equal
                )
            )
    return found
