"""Result files: what to call them, and whether they belong to the images that they are judged on."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from numpy.typing import NDArray
from pycocotools.coco import COCO

from sa_mmdet.coco_format import Detections, read_annotations, use_results
from sa_mmdet.messages import short

from .evaluators import coco_evaluator
from .runs import read_recorded_config
from .settings import TEST, differences, told

_MENTIONED, _DOUBTFUL = 0.1, 0.5  # shares of images without a detection
EMPTY = len("[]\n")  # bytes of a file without detections, which several runs may have
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


@dataclass
class Seen:
    """What the detections of a file tell about the images they were made on."""

    count: int = 0  # of the detections
    images: set[Any] = field(default_factory=set)  # the ids of those with a detection
    beyond: int = 0  # boxes that reach beyond their images

    def add(self, some: Detections, coco: COCO) -> None:
        """Look at some more detections of the file."""
        self.count += len(some.images)
        self.images.update(some.images)
        if some.boxes is not None:
            images = [coco.imgs[image] for image in some.images]
            sizes = np.array([(image["width"], image["height"]) for image in images], np.float64).reshape(-1, 2)
            self.beyond += int(_reach_beyond(some.boxes, sizes).sum())


_known: dict[tuple[Any, ...], Seen] = {}  # of large files, which take seconds to read


def remember(path: str | Path, annotations: str | Path, seen: Seen) -> None:
    """Keep what the detections of a file tell, so that :func:`seen_in` does not read it again.

    Args:
        path: The result file.
        annotations: The file of annotations that it fits.
        seen: What they tell.
    """
    _known[_states(path, annotations)] = seen


def seen_in(path: str | Path, coco: COCO, annotations: str | Path) -> Seen:
    """What the detections of a file tell; a file that was evaluated before and has not changed is not read again.

    Args:
        path: The result file.
        coco: The annotations that it must fit.
        annotations: Their file.

    Raises:
        ValueError: The file cannot be read, or does not fit the annotations.
    """
    known = _known.get(_states(path, annotations)) if os.path.isfile(path) else None
    if known is not None:
        return known

    def look(parts: Iterable[Detections]) -> Seen:
        seen = Seen()
        for some in parts:
            seen.add(some, coco)
        return seen

    return use_results(path, coco, look)


def _states(*paths: str | Path) -> tuple[Any, ...]:
    """What tells files from what they were before."""
    found = [(os.path.realpath(path), os.stat(path)) for path in paths]
    return tuple((path, state.st_mtime_ns, state.st_size, state.st_ino) for path, state in found)


def check_images(path: str | Path, seen: Seen, coco: COCO, annotations: str | Path, moved: bool = False) -> list[str]:
    """Check that detections belong to the images of the annotations, whose ids alone may coincide with others.

    Args:
        path: The result file. A config that a test recorded in or below its folder says on what it was tested.
        seen: What its detections tell.
        coco: The annotations.
        annotations: Their file.
        moved: Whether it is known that the annotations are no longer where the test read them.

    Returns:
        What raises a doubt, one sentence each.

    Raises:
        ValueError: The run's own annotations give other images for the same ids.
    """
    if not seen.count:
        return [f"{path}: has no detections"]
    said = []
    without = len(coco.imgs) - len(seen.images)
    if without >= _MENTIONED * len(coco.imgs):
        doubt = f": {_OTHER_IMAGES}" if without >= _DOUBTFUL * len(coco.imgs) else ""
        said.append(f"{path}: {without} of {len(coco.imgs)} images have no detection{doubt}")
    if seen.beyond >= _BEYOND * seen.count:
        said.append(f"{path}: {seen.beyond} of {seen.count} boxes reach beyond their images: {_OTHER_IMAGES}")
    tested = tested_on(Path(path))
    if tested is None or Path(tested).resolve() == Path(annotations).resolve():
        return said
    if not os.path.isfile(tested):
        doubt = f"{path}: its run was tested on {tested}, which is not here; it is judged on {annotations}"
        return said if moved else [*said, doubt]
    own = {image["id"]: image for image in read_annotations(tested)["images"]}
    for image in sorted(seen.images, key=str):
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


def _reach_beyond(boxes: NDArray[np.float64], sizes: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether boxes, D x 4, reach beyond images, whose widths and heights are D x 2, by more than rounding does."""
    margins = 2 + 0.01 * sizes  # pixels
    ends = boxes[:, :2] + boxes[:, 2:]
    beyond = (boxes[:, :2] + margins < 0) | (ends > sizes + margins)
    return beyond[:, 0] | beyond[:, 1]


def tested_on(path: Path) -> str | None:
    """The annotations that the run which wrote a result file was tested on, by the config that MMEngine recorded.

    Args:
        path: The result file.

    Returns:
        The path in the config of the test; None if none is recorded in or below the file's folder.
    """
    found = _test_of(path)
    return None if found is None else found[1]


def check_runs(variants: Mapping[str, Sequence[str | Path]]) -> None:
    """Check that the files of one variant are of different runs with the same settings.

    Args:
        variants: The result files by the name of their variant.

    Raises:
        ValueError: A file counts twice, or the recorded configs of two tests differ.
    """
    for name, paths in variants.items():
        contents: dict[bytes, str | Path] = {}
        for path in paths:
            try:
                digest = hashlib.sha256(Path(path).read_bytes()).digest()
            except OSError:
                continue  # whoever reads it says what is wrong
            if digest in contents and Path(path).stat().st_size > EMPTY:
                raise ValueError(
                    f"{path} and {contents[digest]}, both {name}, hold the same detections, which would count as two "
                    "runs: give each run once"
                )
            contents[digest] = path
        tests = [(path, found[0]) for path in paths if (found := _test_of(Path(path))) is not None]
        for path, cfg in tests[1:]:
            apart = differences(tests[0][1], cfg, TEST)
            if apart:
                raise ValueError(
                    f"{tests[0][0]} and {path}, both {name}, are of tests that differ in {told(apart)}: give their "
                    "variants different --names"
                )


def _test_of(path: Path) -> tuple[Config, str] | None:
    found = sorted(_recorded(path), key=lambda one: one[:2])
    return found[-1][2:] if found else None


def _recorded(path: Path) -> Iterator[tuple[int, str, Config, str]]:
    """For each recorded config: how surely it is that of the test, the time of its start, it, and its annotations."""
    prefix = path.name.removesuffix(".json").rpartition(".")[0]
    # run_comparison's folder for tests, that of test.py or train.py, and those below the one with the results.
    for certain, pattern in ((2, "new/*"), (1, "*"), (0, "*/*")):
        for file in path.parent.glob(f"{pattern}/vis_data/config.py"):
            try:
                cfg = read_recorded_config(file)
            except ValueError:
                continue
            evaluator = coco_evaluator(cfg)
            if evaluator is None:
                continue
            written = evaluator[1].get("outfile_prefix")
            is_own = isinstance(written, str) and Path(written).resolve() == path.resolve().parent / prefix
            if is_own or certain:
                yield 3 if is_own else certain, file.parts[-3], cfg, evaluator[1]["ann_file"]
