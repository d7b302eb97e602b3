"""Made-up annotations and result files of two detectors, as large as those of COCO's val2017, to measure time with.

Writes truth.json, and for each detector, a and b, a file with boxes and one with masks, as MMDetection writes them:

    python tests/helpers/simulated_val2017.py FOLDER [IMAGES]
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as masks

CATEGORIES = 80
DETECTIONS = 99  # of each image
Random = np.random.Generator
Outline = NDArray[np.float64]  # corners x 2


class Data:
    """Images with objects of all sizes, of few categories each; some categories are frequent.

    Args:
        count: The number of images.
        generator: The random numbers.
    """

    def __init__(self, count: int, generator: Random):
        ids = sorted(generator.choice(np.arange(1, 600_000), count, replace=False).tolist())
        self.categories = sorted(generator.choice(np.arange(1, 91), CATEGORIES, replace=False).tolist())
        frequency = 1 / (np.arange(CATEGORIES) + 1.5)
        frequency[0] *= 1.6
        self.frequency = frequency / frequency.sum()
        generator.shuffle(self.frequency)
        sizes = [(640, 480) if generator.random() < 0.75 else (480, 640) for _ in ids]
        self.images = [
            dict(id=image, file_name=f"{image:012d}.jpg", width=width, height=height)
            for image, (width, height) in zip(ids, sizes, strict=True)
        ]
        self.objects: list[dict[str, Any]] = []
        self.outlines: list[list[tuple[dict[str, Any], Outline]]] = []  # for each image its objects with theirs
        self.kinds: list[NDArray[np.intp]] = []  # for each image the numbers of its categories
        for image in self.images:
            self.outlines.append([])
            number = min(int(generator.lognormal(1.45, 1.0)), 60)
            self.kinds.append(
                generator.choice(CATEGORIES, min(1 + generator.poisson(2), 12), p=self.frequency),
            )
            for _ in range(number):
                self._add(image, generator)

    def _add(self, image: dict[str, Any], generator: Random) -> None:
        box = anywhere(image, generator)
        category = self.categories[int(generator.choice(self.kinds[-1]))]
        outline = clipped(blob(*box, generator), image)
        polygon = [round(value, 2) for value in outline.ravel().tolist()]
        code = masks.merge(masks.frPyObjects([polygon], image["height"], image["width"]))
        is_crowd = int(generator.random() < 0.012)
        entry = dict(
            id=len(self.objects) + 100_001,
            image_id=image["id"],
            category_id=category,
            bbox=[round(value, 2) for value in bounds(outline)],
            area=float(masks.area(code)),
            iscrowd=is_crowd,
            segmentation=counts(code) if is_crowd else [polygon],
        )
        self.objects.append(entry)
        self.outlines[-1].append((entry, outline))

    def truth(self) -> dict[str, Any]:
        """The content of an annotation file."""
        categories = [dict(id=category, name=f"class {category}") for category in self.categories]
        return dict(images=self.images, annotations=self.objects, categories=categories)

    def detections(self, number: int, noise: float, generator: Random) -> list[dict[str, Any]]:
        """The detections of an image: one to three of most objects, and others with low scores anywhere.

        Args:
            number: The image's number.
            noise: How far boxes are off, relative to their sizes.
            generator: The random numbers.
        """
        image, kinds = self.images[number], self.kinds[number]
        found: list[tuple[int, float, Outline]] = []
        for entry, outline in self.outlines[number]:
            if generator.random() > 0.85:
                continue
            for copy in range(1 + (generator.random() < 0.35) + (generator.random() < 0.15)):
                own_noise = noise * (1 + 1.5 * copy)
                scale = np.exp(own_noise * generator.normal(size=2))
                shift = own_noise * generator.normal(size=2) * entry["bbox"][2:]
                middle = outline.mean(0)
                other = generator.random() >= 0.9
                category = self.categories[int(generator.choice(kinds))] if other else entry["category_id"]
                score = 1 / (1 + np.exp(-generator.normal(1.2 - 1.6 * copy, 1.4)))
                found.append((category, score, (outline - middle) * scale + middle + shift))
        while len(found) < DETECTIONS:
            box = anywhere(image, generator)
            near = generator.random() < 0.5
            kind = generator.choice(kinds) if near else generator.choice(CATEGORIES, p=self.frequency)
            score = 1 / (1 + np.exp(-generator.normal(-3, 1)))
            found.append((self.categories[int(kind)], score, blob(*box, generator)))
        found.sort(key=lambda one: -one[1])
        return [detection(image, category, score, clipped(own, image)) for category, score, own in found[:DETECTIONS]]


def anywhere(image: dict[str, Any], generator: Random) -> tuple[float, float, float, float]:
    side = np.exp(generator.normal(3.9, 1.1))
    width, height = side * np.exp(generator.normal(0, 0.35, 2))
    width, height = min(width, 0.95 * image["width"]), min(height, 0.95 * image["height"])
    return *generator.uniform(0, (image["width"] - width, image["height"] - height)), width, height


def blob(x: float, y: float, width: float, height: float, generator: Random) -> Outline:
    """A rough ellipse in a box."""
    angles = np.sort(generator.uniform(0, 2 * np.pi, 24))
    radii = 1 + 0.05 * generator.normal(size=24)
    sides = [x + width / 2 * (1 + np.cos(angles) * radii), y + height / 2 * (1 + np.sin(angles) * radii)]
    return np.stack(sides, 1)


def clipped(outline: Outline, image: dict[str, Any]) -> Outline:
    return np.clip(outline, 0, (image["width"], image["height"]))


def bounds(outline: Outline) -> list[float]:
    """Left, top, width and height."""
    return [*outline.min(0).tolist(), *np.ptp(outline, 0).tolist()]


def counts(code: dict[str, Any]) -> dict[str, Any]:
    """A run-length code with a list of counts, as COCO has it for crowds."""
    pixels = masks.decode(code).T.ravel()
    ends = np.flatnonzero(np.diff(pixels, prepend=0, append=2))
    return dict(counts=np.diff(ends, prepend=0).tolist(), size=code["size"])


def detection(image: dict[str, Any], category: int, score: float, outline: Outline) -> dict[str, Any]:
    code = masks.merge(masks.frPyObjects([outline.ravel().tolist()], image["height"], image["width"]))
    return dict(
        image_id=image["id"],
        bbox=np.array(bounds(outline), np.float32).tolist(),
        score=float(np.float32(score)),
        category_id=category,
        segmentation=dict(size=code["size"], counts=code["counts"].decode()),
    )


def main() -> None:
    folder, count = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 5000
    folder.mkdir(parents=True, exist_ok=True)
    data = Data(count, np.random.default_rng(0))
    (folder / "truth.json").write_text(json.dumps(data.truth()))
    for name, seed, noise in (("a", 10, 0.055), ("b", 11, 0.053)):
        generator = np.random.default_rng(seed)
        found = [one for number in range(count) for one in data.detections(number, noise, generator)]
        (folder / f"{name}.segm.json").write_text(json.dumps(found))
        for one in found:
            del one["segmentation"]
        (folder / f"{name}.bbox.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
