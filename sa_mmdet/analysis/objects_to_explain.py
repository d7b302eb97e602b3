"""Explaining the same objects of an image with several networks."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO

from sa_mmdet.messages import listed, printable

from .activation_maps import ActivationMaps, Found
from .faithfulness import Faithfulness, Perturbation
from .objects import Column, annotated_objects, matched, matched_with


@dataclass
class Panel:
    """What one network shows of one object."""

    found: Found
    faithful: Faithfulness | None = None


@dataclass
class Row:
    """What one network shows of the objects of an image.

    Attributes:
        name: The network's.
        image: What its maps belong to, H x W x 3 with channels in OpenCV's order.
        classes: The names of its classes.
        panels: For each column its panel; None where the network does not see the object.
    """

    name: str
    image: NDArray[np.uint8]
    classes: Sequence[str]
    panels: list[Panel | None]


@dataclass
class Choice:
    """Which objects of an image are explained, and how.

    Attributes:
        top: The largest number of objects.
        threshold: The lowest score of an object.
        classes: Only objects of these classes; all if empty.
        truth: COCO annotations whose objects are explained; if None, those that the networks find.
        steps: Of deletion and insertion; 0 for neither.
    """

    top: int = 4
    threshold: float = 0.3
    classes: Sequence[str] = ()
    truth: COCO | None = None
    steps: int = 0


def check(networks: dict[str, ActivationMaps], choice: Choice) -> None:
    """Check that objects can be matched across networks.

    Raises:
        ValueError: Some are classifiers and some detectors, none has a class that is asked for or annotated, or there
            are annotations of boxes for classifiers.
    """
    kinds = {network.network.classifies for network in networks.values()}
    if len(kinds) > 1:
        raise ValueError("some of the networks are classifiers and some are detectors: give one kind")
    if kinds == {True} and choice.truth is not None:
        raise ValueError("annotations of boxes are for detectors, and the networks are classifiers: leave them out")
    known = all_classes(networks)
    missing = [name for name in choice.classes if name not in known]
    if missing:
        raise ValueError(f"there is no class {listed(missing)}: the classes are {listed(known, 20)}")
    if choice.truth is not None:
        annotated = [printable(str(category["name"])) for category in choice.truth.cats.values()]
        if not set(annotated) & set(known):
            raise ValueError(
                f"the classes of the annotations are {listed(annotated)}, and those of the networks {listed(known)}: "
                "give annotations with classes of the networks"
            )


def all_classes(networks: dict[str, ActivationMaps]) -> list[str]:
    """The names of the classes that any of the networks has."""
    return list(dict.fromkeys(name for network in networks.values() for name in network.network.classes))


def explain(networks: dict[str, ActivationMaps], image: str | Path, choice: Choice) -> tuple[list[Column], list[Row]]:
    """Explain objects of an image with several networks.

    Args:
        networks: By their names; all classifiers or all detectors.
        image: The image file.
        choice: Which objects.

    Returns:
        The objects, and each network's row of panels.

    Raises:
        ValueError: The image is not readable, no object in it is to be explained, or as
            :func:`sa_mmdet.analysis.objects.annotated_objects` raises it.
    """
    looks = {name: network.look(image) for name, network in networks.items()}
    wanted = choice.classes
    seen = {name: [one for one in look.seen if not wanted or one.name in wanted] for name, look in looks.items()}
    if choice.truth is None:
        columns = matched(seen, choice.top, choice.threshold)
        if not columns:
            which = f" of class {listed(wanted)}" if wanted else ""
            low = f"{choice.threshold:g} or more: lower --threshold"
            raise ValueError(f"{image}: nothing{which} is found with a score of {low}")
    else:
        height, width = next(iter(looks.values())).shown.shape[:2]
        truth = annotated_objects(choice.truth, image, height, width)
        classes = wanted or all_classes(networks)
        truth = [one for one in truth if one.name in classes]
        if not truth:
            raise ValueError(f"{image}: no object of class {listed(classes)} is annotated in it")
        columns = matched_with(truth, seen, choice.top, choice.threshold)
    rows = []
    for name, network in networks.items():
        look = looks[name]
        chosen = [column.seen[name] for column in columns if name in column.seen]
        found = [network.explain(look, one) for one in chosen]
        faithful: Sequence[Faithfulness | None] = [None] * len(chosen)
        if choice.steps and chosen:
            faithful = Perturbation(network.network, look, choice.steps).judge(chosen, found)
        panels = iter([Panel(*pair) for pair in zip(found, faithful, strict=True)])
        rows.append(
            Row(
                name,
                look.shown,
                network.network.classes,
                [next(panels) if name in column.seen else None for column in columns],
            )
        )
    return columns, rows
