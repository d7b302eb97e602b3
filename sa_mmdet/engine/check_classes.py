"""A check of class names and annotation files at the begin of every run, before anything is loaded."""

import functools
import logging
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mmdet.datasets import BaseDetDataset, CocoDataset
from mmengine.fileio import LocalBackend, get_file_backend
from mmengine.logging import print_log
from mmengine.registry import DATASETS
from mmengine.runner import BaseLoop

from sa_mmdet.coco_format import category_names
from sa_mmdet.messages import listed

from .evaluators import evaluators, is_coco_metric

_SHOWN = 20  # names that an error lists


@dataclass(frozen=True)
class Annotations:
    """A file of annotations, and the classes that are looked up in it."""

    path: str
    classes: tuple[Any, ...]
    named: bool  # whether the user named them, rather than the data set's class


def checking(phases: Sequence[str], original: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Wrap a runner's method, so that it first checks the class names of its data.

    Args:
        phases: The phases whose data the method reads, of 'train', 'val' and 'test'.
        original: The method.
    """

    @functools.wraps(original)
    def run(self: Any) -> Any:
        found = [annotations for phase in phases for annotations in _of_phase(self, phase)]
        check_classes(found, trained="train" in phases)
        return original(self)

    return run


def check_classes(found: Iterable[Annotations], trained: bool = False) -> None:
    """Check that every class that the user names is in the annotations, and has the same label in all of them.

    MMDetection drops the objects of classes that it does not find, and numbers the others in the order of the
    annotations' categories, whatever the order of the classes.

    Args:
        found: The files of a run.
        trained: Whether to refuse files without any categories, which a test may have.

    Raises:
        FileNotFoundError: A file of annotations is missing.
        ValueError: A class that the user named is in no file, no class is in any, a name stands for two categories,
            or a class has different labels in two files.
    """
    groups: dict[tuple[Any, ...], dict[str, bool]] = defaultdict(dict)
    for one in found:
        groups[one.classes][one.path] = one.named
    for classes, files in groups.items():
        for path in files:
            if not os.path.isfile(path):
                raise FileNotFoundError(
                    f"{path}: there is no such file of annotations: check data_root and ann_file; relative paths begin "
                    f"in {os.getcwd()}"
                )
        names = {path: category_names(path) for path in files}
        if trained or any(names.values()):
            _check_missing(classes, names, any(files.values()))
        _check_labels(classes, names)


def _check_missing(classes: tuple[Any, ...], names: dict[str, list[Any]], named: bool) -> None:
    present = list(dict.fromkeys(name for own in names.values() for name in own))
    missing = [one for one in classes if one not in present]
    if not missing:
        return
    what = f"class {missing[0]!r} is" if len(missing) == 1 else f"classes {listed(map(repr, missing), _SHOWN)} are"
    message = (
        f"{listed(names)}: {what} not in the annotations; they have {listed(present, _SHOWN) or 'none'}: set the data "
        "sets' metainfo=dict(classes=(...)) to names that the annotations use"
    )
    if named or len(missing) == len(classes):
        raise ValueError(message)
    _warn(message)


def _check_labels(classes: tuple[Any, ...], names: dict[str, list[Any]]) -> None:
    labels = {path: [name for name in own if name in classes] for path, own in names.items()}
    for path, own in labels.items():
        twice = sorted({str(name) for name in own if own.count(name) > 1})
        if twice:
            raise ValueError(f"{path}: several categories have the name {listed(twice)}: give each a name of its own")
    longest = max(labels, key=lambda path: len(labels[path]))
    for path, own in labels.items():
        for number, (name, other) in enumerate(zip(own, labels[longest], strict=False)):
            if name != other:
                raise ValueError(
                    f"label {number} is {name!r} in {path} and {other!r} in {longest}, since MMDetection numbers the "
                    "classes in the order of each file's categories: give all files the same categories, in one order"
                )
    own = labels[longest]
    for number, (name, other) in enumerate(zip(own, classes, strict=False)):
        if name != other:
            _warn(
                f"{longest}: MMDetection numbers the classes in the order of the annotations: label {number} is "
                f"{name!r}, but will be shown as {other!r}: name the classes in the order {listed(own, _SHOWN)}"
            )
            return


@functools.cache  # so that a run says it once
def _warn(message: str) -> None:
    print_log(message, logger="current", level=logging.WARNING)


def _of_phase(runner: Any, phase: str) -> Iterator[Annotations]:
    """The files that a runner's loop for training, validation or test will read, or has read."""
    loop = getattr(runner, f"_{phase}_loop", None)
    if loop is None:
        return
    loader = loop.dataloader if isinstance(loop, BaseLoop) else getattr(runner, f"_{phase}_dataloader", None)
    dataset = loader.get("dataset") if isinstance(loader, dict) else getattr(loader, "dataset", None)
    own = [found for part in parts(dataset) if (found := annotations_of(part)) is not None]
    yield from own
    for _, evaluator in evaluators(getattr(runner, f"_{phase}_evaluator", None), phase):
        path = evaluator.get("ann_file")
        if (
            own
            and is_coco_metric(evaluator)
            and isinstance(path, str)
            and is_local(evaluator.get("backend_args"), path)
        ):
            yield Annotations(path, own[0].classes, own[0].named)


def parts(dataset: Any) -> Iterator[Any]:
    """The plain data sets inside MMEngine's wrappers.

    Args:
        dataset: A data set, or the config of one.
    """
    get = dataset.get if isinstance(dataset, dict) else functools.partial(_attribute, dataset)
    several = get("datasets")
    if isinstance(several, list | tuple):
        for inner in several:
            yield from parts(inner)
    elif get("dataset") is not None:
        yield from parts(get("dataset"))
    elif dataset is not None:
        yield dataset


def _attribute(owner: Any, name: str) -> Any:
    return getattr(owner, name, None)


def annotations_of(part: Any) -> Annotations | None:
    """The annotations of a data set, if its class finds its classes in them as CocoDataset does.

    Args:
        part: A data set, or the config of one.
    """
    dataset = _not_loaded(part) if isinstance(part, dict) else part
    if not _looks_names_up(type(dataset)) or not is_local(dataset.backend_args, dataset.ann_file):
        return None
    classes = dataset.metainfo.get("classes")
    if not isinstance(classes, list | tuple):
        return None
    named = tuple(classes) != tuple(type(dataset).METAINFO.get("classes", ()))
    return Annotations(str(dataset.ann_file), tuple(classes), named)


def _looks_names_up(kind: Any) -> bool:
    if not issubclass(kind, CocoDataset):
        return False
    return kind.load_data_list is CocoDataset.load_data_list and kind.COCOAPI is CocoDataset.COCOAPI


def _not_loaded(cfg: dict[str, Any]) -> Any:
    """Build a data set without reading its annotations; None for a class that may do more when it is built."""
    arguments = {key: cfg[key] for key in cfg if key not in ("type", "_scope_")}
    try:
        with DATASETS.switch_scope_and_registry(cfg.get("_scope_")) as registry:
            kind = registry.get(cfg["type"]) if isinstance(cfg["type"], str) else cfg["type"]
        if _looks_names_up(kind) and kind.__init__ is BaseDetDataset.__init__:
            return kind(**{**arguments, "pipeline": [], "lazy_init": True})
    except Exception:  # the run itself will say what is wrong with the config
        pass
    return None


def is_local(backend_args: Any, path: str = "") -> bool:
    """Whether a file is read from the disk under its own name.

    Args:
        backend_args: As a data set or a transform has them.
        path: The file's path; without it, the arguments alone decide.
    """
    try:
        return type(get_file_backend(path, backend_args=backend_args)) is LocalBackend
    except Exception:  # a backend that is not installed, or arguments that only another one takes
        return False
