"""On which images runs were tested, and which of their results can be judged together."""

import functools
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sa_mmdet.coco_format import load_annotations, read_annotations
from sa_mmdet.messages import listed, short

from .result_files import check_images, seen_in, tested_on
from .runs import Run, tested_data
from .settings import differences, told
from .tasks import DETECTOR, Task

_DATA = ("type", "part", "data_root", "ann_file", "indices")
_SEPARATE = "so that nothing is judged: give runs with one test set"


def without_results(runs: Sequence[Run], task: Task) -> list[str]:
    """Say which runs did not keep their results, if others did.

    Args:
        runs: The runs.
        task: What is measured.
    """
    without = [run.name for run in runs if run.results(task.name) is None and task.keys[0] in run.metrics[-1][1]]
    if not without or len(without) == len(runs):
        return []
    return [f"not judged, since {' or '.join(task.files)} is missing: {listed(without)} ({task.command})"]


def judged_together(runs: Sequence[Run], task: Task) -> tuple[Path | None, list[Run], list[str]]:
    """Find the runs whose results for a task can be judged, all on the same images.

    Args:
        runs: The runs.
        task: That of boxes or of masks.

    Returns:
        The annotations of the images, the runs, and a sentence about each obstacle. If the runs were tested on
        different images, or nobody can tell, there are no annotations and no runs.
    """
    having = [run for run in runs if run.results(task.name) is not None]
    if not having:
        return None, [], []
    notes = without_results(runs, task)
    files = {run.name: annotations_of(run, task.name) for run in having}
    gone = [run for run in having if not os.path.isfile(files[run.name])]
    if gone:
        notes.append(
            f"the {task.results} of {listed(run.name for run in gone)} cannot be judged without the annotations "
            f"{listed((short(str(path)) for path in dict.fromkeys(files[run.name] for run in gone)), 2)}, which are "
            "not here: name the data set's folder with --data-root"
        )
        having = [run for run in having if run not in gone]
    different = _different([(run.name, files[run.name]) for run in having])
    if different or not having:
        return None, [], [*notes, *different]
    annotations = files[having[0].name]
    judged = []
    doubts: dict[str, list[str]] = {}
    coco = load_annotations(annotations)
    for run in having:
        path = run.results(task.name)
        try:
            moved = run.data_root is not None
            for doubt in check_images(str(path), seen_in(str(path), coco, annotations), coco, annotations, moved):
                doubts.setdefault(doubt.removeprefix(f"{path}: "), []).append(run.name)
            judged.append(run)
        except ValueError as error:
            notes.append(f"{run.name} is not judged: {error}")
    notes += [f"results of {listed(names)}: {doubt}" for doubt, names in doubts.items()]
    return annotations, judged, notes


def comparable(runs: Sequence[Run]) -> list[str]:
    """Say why the metrics of runs are not to be put side by side: they are of different images.

    Args:
        runs: The runs, of one kind.

    Returns:
        One sentence; nothing if, as far as can be known, all runs were tested on the same images. Of classifiers, whose
        predictions name the images, the configs count where predictions are missing.
    """
    first, *others = runs
    if first.kind is DETECTOR:
        return _different([(run.name, run.annotations) for run in runs])
    [task] = first.kind.tasks
    if all(run.results(task.name) is not None for run in runs):
        return []
    for run in others:
        found = differences(tested_data(first.cfg), tested_data(run.cfg), _DATA)
        if found:
            what = f"{first.name} and {run.name} differ in {told(found)}"
            return [f"the runs are of different test sets ({what}), {_SEPARATE}"]
    return []


def annotations_of(run: Run, task: str) -> Path:
    """The annotations that the results of a run belong to: those of the test that wrote them, if it is recorded.

    Args:
        run: The run.
        task: 'bbox' or 'segm'.
    """
    path = run.results(task)
    tested = tested_on(path) if path is not None else None
    return run.annotations if tested is None else run.place(tested)


def is_same_test_set(one: str | Path, other: str | Path) -> bool:
    """Whether two files of annotations have the same images and objects, in whatever form.

    Args:
        one: A file.
        other: Another one.

    Raises:
        ValueError: One of them cannot be read.
    """
    return Path(one).resolve() == Path(other).resolve() or _content(Path(one)) == _content(Path(other))


def _different(files: Sequence[tuple[str, Path]]) -> list[str]:
    """A sentence if files of annotations have different contents or, where they are not here, different names."""
    sets: dict[str, tuple[str, Path]] = {}
    for name, path in files:
        sets.setdefault(_content_or_name(path), (name, path))
    here = [one for one in sets.values() if os.path.isfile(one[1])]
    if len(here) < 2 and len({path.name for _, path in sets.values()}) < 2:
        return []
    where = listed(f"{name} on {path}" for name, path in sets.values())
    return [f"the runs are of different test sets ({where}), {_SEPARATE}"]


def _content_or_name(path: Path) -> str:
    try:
        return _content(path) if os.path.isfile(path) else path.name
    except ValueError:  # whoever evaluates with it says what is wrong
        return path.name


def _content(path: Path) -> str:
    state = path.stat()
    return _digest(path, state.st_mtime_ns, state.st_size)


@functools.lru_cache(16)
def _digest(path: Path, _changed: int, _size: int) -> str:
    """A digest of what matters to an evaluation, computed once as long as the file does not change."""
    content = read_annotations(path)
    keys = dict(
        images=("id", "height", "width"),
        annotations=("id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation"),
        categories=("id", "name"),
    )
    parts: list[Any] = [
        [[entry.get(key) for key in names] for entry in content.get(kind, [])] for kind, names in keys.items()
    ]
    parts.append([Path(str(image.get("file_name", ""))).stem for image in content["images"]])
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
