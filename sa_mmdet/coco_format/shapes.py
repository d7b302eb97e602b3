"""A small instance segmentation data set in COCO's format: circles, triangles and squares on a noisy ground."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as coco_mask

CLASSES = ("circle", "triangle", "square")
WIDTH, HEIGHT = 160, 128  # pixels
MAX_OBJECTS = 5
RADIUS = (14, 34)  # pixels, to the corners
MAX_OVERLAP = 0.2  # of an object's own area


def make_shapes(root: str | Path, sizes: dict[str, int], seed: int = 0) -> None:
    """Write images/ and annotations/instances_<split>.json, or leave them if they are there.

    Objects may hide parts of earlier ones: the masks hold what is seen. One image in thirty has no object.

    Args:
        root: The folder to make; written aside and renamed, so that it is never half there.
        sizes: Number of images a split, such as ``dict(train=400, val=80)``.
        seed: Seed of everything drawn.

    Raises:
        ValueError: A number of images is not positive.
        FileExistsError: ``root`` is there and holds something else.
    """
    root = Path(root)
    for split, number in sizes.items():
        if number < 1:
            raise ValueError(f"{split}={number}: a split needs at least one image")
    recipe = json.dumps(dict(sizes=sizes, seed=seed), sort_keys=True)
    marker = root / "recipe.json"
    if root.exists():
        if marker.is_file() and marker.read_text() == recipe:
            return
        raise FileExistsError(f"{root} is there and was not made with {recipe}: remove it or name another folder")
    aside = root.with_name(root.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)
    (aside / "images").mkdir(parents=True)
    (aside / "annotations").mkdir()
    generator = np.random.default_rng(seed)
    for split, number in sizes.items():
        images: list[dict] = []
        annotations: list[dict] = []
        for image_id in range(1, number + 1):
            image, objects = _draw(generator)
            name = f"{split}_{image_id:04d}.png"
            if not cv2.imwrite(str(aside / "images" / name), image):
                raise OSError(f"cannot write {aside / 'images' / name}: is the disk full?")
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
        content = dict(images=images, annotations=annotations, categories=categories)
        (aside / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    (aside / "recipe.json").write_text(recipe)
    aside.rename(root)


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
        corners_of_shape = {1: 40, 2: 3, 3: 4}[category]
        angles = generator.uniform(0, 2 * np.pi) + 2 * np.pi * np.arange(corners_of_shape) / corners_of_shape
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
    image += generator.normal(0, 8, image.shape).astype(np.float32)
    return image.clip(0, 255).astype(np.uint8), list(zip(categories, visible, strict=True))
