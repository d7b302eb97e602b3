"""A small instance segmentation data set in COCO's format: circles, triangles and squares on a noisy background."""

import json
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from sa_mmdet.atomic_write import atomic_write

VERSION = 2  # of the drawing; count it up where the same seed gives other images, so that no older folder is taken
CLASSES = ("circle", "triangle", "square")
WIDTH, HEIGHT = 480, 384  # pixels
GRAIN = 3  # pixels, the side of the noise's squares
MAX_OBJECTS = 4
RADIUS = (48, 108)  # pixels, from the centre to the corners
TILT = 5  # degrees, to either side; more, and squares fill as much of their boxes as circles do
MAX_OVERLAP = 0.1  # as a fraction of an object's area


def make_shapes(root: str | Path, sizes: dict[str, int], seed: int = 0) -> None:
    """Write images/ and annotations/instances_<split>.json, unless the same data set is there already.

    Objects may hide parts of earlier ones; the masks hold what is visible. One image in thirty has no object.

    Args:
        root: The folder to make; written atomically.
        sizes: The number of images per split, such as ``dict(train=400, val=80)``.
        seed: The seed of all random numbers.

    Raises:
        ValueError: A number of images is not positive.
        FileExistsError: ``root`` exists and holds something else.
    """
    root = Path(root)
    for split, number in sizes.items():
        if number < 1:
            raise ValueError(f"{split}={number}: a split needs at least one image")
    recipe = json.dumps(dict(sizes=sizes, seed=seed, version=VERSION), sort_keys=True)
    marker = root / "recipe.json"
    if root.exists():
        if marker.is_file() and marker.read_text() == recipe:
            return
        raise FileExistsError(f"{root} exists and was not made with {recipe}: remove it or name another folder")
    root.parent.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    with atomic_write(root) as temporary:
        (temporary / "images").mkdir(parents=True)
        (temporary / "annotations").mkdir()
        for split, number in sizes.items():
            content = _split(temporary / "images", split, number, generator)
            (temporary / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
        (temporary / "recipe.json").write_text(recipe)


def _split(folder: Path, split: str, number: int, generator: np.random.Generator) -> dict[str, list[dict]]:
    """Write the images of a split and return its annotations."""
    images: list[dict] = []
    annotations: list[dict] = []
    for image_id in range(1, number + 1):
        image, objects = _draw(generator)
        name = f"{split}_{image_id:04d}.png"
        if not cv2.imwrite(str(folder / name), image):
            raise OSError(f"cannot write {folder / name}: is the disk full?")
        images.append(dict(id=image_id, file_name=name, width=WIDTH, height=HEIGHT))
        for category_id, mask in objects:
            encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=image_id,
                    category_id=category_id,
                    bbox=[float(v) for v in coco_mask.toBbox(encoded)],
                    area=float(coco_mask.area(encoded)),
                    iscrowd=0,
                    segmentation=dict(size=encoded["size"], counts=encoded["counts"].decode()),
                )
            )
    categories = [dict(id=i, name=name) for i, name in enumerate(CLASSES, 1)]
    return dict(images=images, annotations=annotations, categories=categories)


def _draw(generator: np.random.Generator) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
    """One image, and the category and visible mask of each of its objects."""
    corners = generator.uniform(40, 215, (2, 2, 3)).astype(np.float32)
    image = cv2.resize(corners, (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR)
    full: list[np.ndarray] = []
    visible: list[np.ndarray] = []
    categories: list[int] = []
    wanted = 0 if generator.random() < 1 / 30 else generator.integers(1, MAX_OBJECTS + 1)
    for _ in range(20 * wanted):
        if len(full) == wanted:
            break
        category = int(generator.integers(1, len(CLASSES) + 1))
        radius = generator.uniform(*RADIUS)
        centre = generator.uniform((radius, radius), (WIDTH - radius, HEIGHT - radius))
        corners_of_shape, first = {1: (40, 0), 2: (3, -90), 3: (4, 45)}[category]
        tilt = np.deg2rad(first + generator.uniform(-TILT, TILT))
        angles = tilt + 2 * np.pi * np.arange(corners_of_shape) / corners_of_shape
        polygon = centre + radius * np.stack((np.cos(angles), np.sin(angles)), axis=1)
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        cv2.fillPoly(mask, [np.round(polygon).astype(np.int32)], 1)
        drawn = mask.astype(bool)
        if any((drawn & earlier).sum() > MAX_OVERLAP * min(drawn.sum(), earlier.sum()) for earlier in full):
            continue
        colour = image[drawn].mean(0) + generator.choice((-1, 1), 3) * generator.uniform(40, 90, 3)
        image[drawn] = colour
        visible = [earlier & ~drawn for earlier in visible]
        full.append(drawn)
        visible.append(drawn)
        categories.append(category)
    noise = generator.normal(0, 8, (HEIGHT // GRAIN, WIDTH // GRAIN, 3)).astype(np.float32)
    image += noise.repeat(GRAIN, axis=0).repeat(GRAIN, axis=1)
    return image.clip(0, 255).astype(np.uint8), list(zip(categories, visible, strict=True))
