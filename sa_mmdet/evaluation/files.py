"""The evaluation of result files, each read once, in processes of their own."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pycocotools.coco import COCO

from sa_mmdet.coco_format import Detections, load_annotations, tasks_of, use_results
from sa_mmdet.untrusted import RefusedFileError, read_json_parts

from .average_precision import TASKS, Evaluation, evaluate_found
from .objects import Found, Objects
from .processes import in_processes, no_collection
from .result_files import Seen, check_images, remember


@dataclass
class _Answer:
    """What a file's evaluation found."""

    evaluations: dict[str, Evaluation]  # for each of the tasks that all detections have an answer to
    seen: Seen
    doubts: list[str]  # whether the results belong to the images


def evaluate_files(
    annotations: str | Path, results: Sequence[str | Path], task: str, doubts: list[str] | None = None
) -> list[Evaluation]:
    """Evaluate several result files.

    Args:
        annotations: The file of COCO annotations.
        results: The result files.
        task: 'bbox' or 'segm'.
        doubts: Gets what raises a doubt whether the results belong to the annotations; None not to look for it.

    Raises:
        ValueError: A file cannot be read, is invalid or has detections without an answer to the task, or its
            evaluation was killed; or, where doubts are looked for, a file belongs to other images.
    """
    answers = _evaluate(annotations, results, (task,), check=doubts is not None)
    if doubts is not None:
        doubts += [doubt for answer in answers for doubt in answer.doubts]
    for path, answer in zip(results, answers, strict=True):
        if task not in answer.evaluations:
            raise ValueError(f"{path}: has detections without a {TASKS[task]}")
    return [answer.evaluations[task] for answer in answers]


def evaluate_common(
    annotations: str | Path, results: Sequence[str | Path]
) -> tuple[dict[str, dict[str | Path, Evaluation]], list[str]]:
    """Evaluate several result files for the tasks that all of them have detections for.

    Args:
        annotations: The file of COCO annotations.
        results: The result files; one without any detection is valid for every task.

    Returns:
        For each of these tasks, of :data:`TASKS`, the evaluations of the files; and what raises a doubt whether the
        results belong to the annotations.

    Raises:
        ValueError: A file cannot be read or is invalid, belongs to other images, its evaluation was killed, or the
            files have no task in common.
    """
    paths = list(dict.fromkeys(results))
    answers = _evaluate(annotations, paths, _announced(paths), check=True)
    with_detections = [set(answer.evaluations) for answer in answers if answer.seen.count]
    tasks = sorted(set.intersection(*with_detections)) if with_detections else ["bbox"]
    if not tasks:
        raise ValueError("some result files have only boxes and others only masks: there is nothing to compare")
    found = {
        task: {path: answer.evaluations[task] for path, answer in zip(paths, answers, strict=True)} for task in tasks
    }
    return found, [doubt for answer in answers for doubt in answer.doubts]


def _announced(results: Sequence[str | Path]) -> set[str]:
    """The tasks that the first detection of every file has an answer to: all detections cannot have one to others."""
    announced = set(TASKS)
    for path in results:
        try:
            first = next(read_json_parts(path))[:1]
        except RefusedFileError:  # another tool's form, or a file that is refused when it is its turn
            continue
        if first and isinstance(first[0], dict):
            announced &= tasks_of(first)
    return announced


def _evaluate(
    annotations: str | Path, results: Sequence[str | Path], tasks: Iterable[str], check: bool
) -> list[_Answer]:
    coco, objects = read_objects(annotations, tasks)

    def evaluate_file(path: str | Path) -> _Answer:
        found, seen = use_results(path, coco, lambda parts: _found(parts, coco, objects, tasks))
        if "segm" in found:
            objects.check_masks(annotations)
        evaluations = {task: evaluate_found(Found.joined(parts), objects) for task, parts in found.items()}
        return _Answer(evaluations, seen, check_images(path, seen, coco, annotations) if check else [])

    answers = in_processes(evaluate_file, results, lambda path: f"{path}: its evaluation")
    for path, answer in zip(results, answers, strict=True):
        remember(path, annotations, answer.seen)
    return answers


def read_objects(annotations: str | Path, tasks: Iterable[str]) -> tuple[COCO, Objects]:
    """Read annotations, and keep the objects by columns, and of the rest the images and categories.

    Args:
        annotations: The file of COCO annotations.
        tasks: 'bbox', 'segm' or both.

    Raises:
        ValueError: The file cannot be read or is invalid.
    """
    with no_collection():
        coco = load_annotations(annotations)
        objects = Objects.of(coco, "segm" in tasks)
    coco.dataset["annotations"] = []  # which take ten times the memory of the objects by columns
    for index in (coco.anns, coco.imgToAnns, coco.catToImgs):
        index.clear()
    return coco, objects


def _found(
    detections: Iterable[Detections], coco: COCO, objects: Objects, tasks: Iterable[str]
) -> tuple[dict[str, list[Found]], Seen]:
    """The parts of a file's detections for each of the tasks that all of them have an answer to."""
    seen = Seen()
    found: dict[str, list[Found]] = {task: [] for task in tasks}
    for some in detections:
        seen.add(some, coco)
        found = {task: parts for task, parts in found.items() if task in some.tasks}
        for task, parts in found.items():
            if task == "bbox" or objects.masks is not None:
                parts.append(Found.of(some, objects, task))
    return found, seen
