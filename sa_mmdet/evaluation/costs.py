"""What variants cost: parameters, multiply-adds at the size that was trained, and time where it was measured."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmengine.config import Config

from sa_mmdet.analysis.benchmark_steps import VARIANTS
from sa_mmdet.analysis.complexity import CLASSES, Complexity, analyze
from sa_mmdet.backbones import attention_label
from sa_mmdet.untrusted import check_buildable

from .runs import Run, kind_of
from .tasks import CLASSIFIER
from .variants import by_variant

_LARGEST = 10_000  # pixels; what a work directory of others asks for
# The transforms that fix a size, and which of their settings it is. A single number is both sides.
_SIZES = {
    "CenterCrop": "crop_size",
    "EfficientNetCenterCrop": "crop_size",
    "EfficientNetRandomCrop": "scale",
    "FixShapeResize": "width",
    "RandomChoiceResize": "scales",
    "RandomCrop": "crop_size",
    "RandomResize": "scale",
    "RandomResizedCrop": "scale",
    "Resize": "scale",
    "ResizeEdge": "scale",
}
_LONGEST = 1e6  # times as long as the plain network
_DEPTH = 50  # of files that the benchmark wrote before it noted the depth


@dataclass(frozen=True)
class Cost:
    """The cost of a variant; NaN where its model cannot be built here.

    Attributes:
        parameters: Those that are trained, in millions.
        operations: Multiply-adds of one image, in billions, counted by the paper's rules.
        shape: Height and width of that image in pixels; None if the config does not fix them.
    """

    parameters: float
    operations: float
    shape: tuple[int, int] | None


@dataclass(frozen=True)
class Time:
    """The time of inference of one image, as a ratio to that of the plain network, with its quartiles."""

    ratio: float
    low: float
    high: float


def costs_of(runs: Sequence[Run]) -> dict[str, Cost]:
    """Count each variant's parameters, and its multiply-adds at the size that it was trained at.

    Args:
        runs: The runs.

    Returns:
        The costs by variant.
    """
    found: dict[str, Cost] = {}
    known: dict[tuple[str, tuple[int, int] | None], Cost] = {}  # variants may differ in their training alone
    for variant, own in by_variant(runs).items():
        shape = trained_shape(own[0].cfg)
        key = repr(own[0].cfg.model), shape
        if key not in known:
            known[key] = _cost(own[0], shape)
        found[variant] = known[key]
    return found


def _cost(run: Run, shape: tuple[int, int] | None) -> Cost:
    try:
        check_buildable(Config(dict(model=_counted(run.cfg)[0])), run.folder)
        found = count(run.cfg, shape)
    except Exception:  # what a work directory of others describes may not build in any way
        return Cost(math.nan, math.nan, shape)
    return Cost(found.trainable / 1e6, found.total / 1e9, shape)


def count(cfg: Config, shape: tuple[int, int] | None, convention: str = "paper") -> Complexity:
    """Count a config's parameters and multiply-adds; of a classifier without MMPretrain, too.

    Args:
        cfg: The config of a detector, backbone or classifier.
        shape: Height and width of the image in pixels; the paper's if None.
        convention: As :func:`sa_mmdet.analysis.analyze` takes it.

    Raises:
        ValueError: The model cannot be built or counted.
    """
    model, classes = _counted(cfg)
    return analyze(model, shape, convention, classes)


def _counted(cfg: Config) -> tuple[Any, int]:
    """What is counted of a model, and the classes of a classifier, of which only the backbone is built.

    Its backbone is MMDetection's or this package's; MMPretrain need not be here for it.
    """
    model = cfg.model
    if kind_of(cfg) is not CLASSIFIER:
        return model, CLASSES
    head = model.get("head")
    return model.backbone, head.get("num_classes", CLASSES) if isinstance(head, Mapping) else CLASSES


def trained_shape(cfg: Mapping[str, Any]) -> tuple[int, int] | None:
    """Height and width of the largest training images, in landscape, with the padding of the batches.

    They are those of the last transform of the training that fixes a size, or else of the test; of several sizes that
    a transform chooses from, the largest. Height and width are rounded up to the padding's multiple.

    Args:
        cfg: The run's config.
    """
    for part in ("train_dataloader", "test_dataloader"):
        sizes = [size for transform in _transforms(cfg.get(part)) if (size := _size(transform)) is not None]
        if sizes:
            break
    else:
        return None
    model = cfg.get("model")
    prepared = model.get("data_preprocessor") if isinstance(model, Mapping) else None
    divisor = prepared.get("pad_size_divisor", 1) if isinstance(prepared, Mapping) else 1
    if not isinstance(divisor, int) or not 1 <= divisor <= _LARGEST:
        return None
    width, height = (-(-side // divisor) * divisor for side in sizes[-1])
    return height, width


def times(speed: Mapping[str, Any] | None, runs: Sequence[Run]) -> tuple[dict[str, Time], str]:
    """The measured times of the runs' variants.

    Args:
        speed: The content of the benchmark's JSON file, or None.
        runs: The runs. Only those count whose backbone is one that was measured, at its depth.

    Returns:
        The times by variant, for the first size that was measured, and what was measured. Both are empty if nothing
        of the runs was measured.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: The content is not what the benchmark writes.
    """
    if speed is None or not speed["runs"]:
        return {}, ""
    measured = speed["runs"][0]
    depth = speed.get("depth", _DEPTH)
    height, width = measured["shape"]
    found = {}
    for run in runs:
        name = _benchmarked(run, depth, measured["results"])
        if name is not None:
            own = measured["results"][name]["inference"]
            low, high = own.get("ratio_paired_quartiles", [own["ratio_paired"]] * 2)
            time = Time(float(own["ratio_paired"]), float(low), float(high))
            if not 0 < time.low <= time.ratio <= time.high < _LONGEST:
                raise ValueError(f"{name} takes {time.ratio} ({time.low} to {time.high}) times as long as plain")
            found[run.variant] = time
    command = speed.get("command") or ["?"]
    what = f"{command[0]}, ResNet-{depth}, {height} x {width}, batch {measured['batch']}"
    return (found, what) if found else ({}, "")


def _benchmarked(run: Run, depth: int, results: Mapping[str, Any]) -> str | None:
    """The name by which the benchmark knows a run's backbone."""
    own = run.cfg.model.backbone
    for name, backbone in VARIANTS.items():
        if (
            name in results
            and name.partition("-")[0] == name
            and backbone["type"] == str(own.type).removeprefix("mmdet.")
        ):
            chosen = [one.get("implementation", "auto") for one in (backbone, own)]
            if attention_label(backbone) == run.attention and chosen[0] == chosen[1] and own.get("depth") == depth:
                return name
    return None


def _transforms(loader: Any) -> Iterator[Mapping[str, Any]]:
    """The transforms of a data set, which others may wrap."""
    while isinstance(loader, Mapping) and not loader.get("pipeline"):
        loader = loader.get("dataset")
    pipeline = loader.get("pipeline") if isinstance(loader, Mapping) else None
    for transform in pipeline if isinstance(pipeline, list | tuple) else ():
        if isinstance(transform, Mapping):
            yield transform


def _size(transform: Mapping[str, Any]) -> tuple[int, int] | None:
    """Width and height, the larger first, that a transform makes; None if it does not fix them."""
    name = str(transform.get("type")).rpartition(".")[2]
    if name not in _SIZES:
        return None
    value = transform.get(_SIZES[name])
    if name == "FixShapeResize":
        value = (value, transform.get("height"))
    if name == "RandomCrop" and transform.get("crop_type", "absolute") != "absolute":
        return None
    if isinstance(value, int):
        value = (value, value)
    pairs = value if isinstance(value, list | tuple) and value and isinstance(value[0], list | tuple) else [value]
    sizes = []
    for pair in pairs:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(_is_side(side) for side in pair):
            return None
        sizes.append((max(pair), min(pair)))
    return max(sizes, key=lambda size: size[0] * size[1])


def _is_side(side: Any) -> bool:
    return isinstance(side, int) and not isinstance(side, bool) and 32 <= side <= _LARGEST
