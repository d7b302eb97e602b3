"""The names in checkpoints of ResNets: prefixes, heads, depths, and the layers' names of other libraries.

Whoever reads a ResNet's checkpoint asks this module, so that all accept the same files.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from sa_mmdet.attention import Attention, attention_types
from sa_mmdet.messages import listed

# Whether the blocks are bottlenecks, and how many each stage has.
DEPTHS: dict[tuple[bool, tuple[int, ...]], int] = {
    (False, (2, 2, 2, 2)): 18,
    (False, (3, 4, 6, 3)): 34,
    (True, (3, 4, 6, 3)): 50,
    (True, (3, 4, 23, 3)): 101,
    (True, (3, 8, 36, 3)): 152,
}
_ANCHOR = re.compile(r"^(.*)layer1\.0\.conv1\.weight$")  # which every ResNet has
_CLASSIFIER = re.compile(r"^(?:head\.)?(?:fc|classifier|last_linear)\.(weight|bias)$")
_DETECTOR = re.compile(r"^(neck|rpn_head|roi_head|bbox_head|mask_head|panoptic_head|query_head|decoder)\.")
_OUTSIDE = re.compile(rf"{_DETECTOR.pattern}|^(head|fc|classifier|last_linear|data_preprocessor)\.")
_TIMM_DEEP_STEM = [(r"^conv1\.", "stem."), (r"^bn1\.", "stem.7.")]


@dataclass
class Names:
    """A checkpoint's keys, sorted by what they are for."""

    prefix: str  # of the backbone's keys, without DataParallel's
    backbone: dict[str, str] = field(default_factory=dict)  # MMDetection's name: key in the file
    classifier: dict[str, str] = field(default_factory=dict)  # 'weight', 'bias' of the last layer: key in the file
    other: list[str] = field(default_factory=list)  # keys of other parts


def sort_names(keys: Iterable[str], path: str | Path, prefix: str | None = None) -> Names:
    """Tell a ResNet's keys from those of a head, a neck and so on, and give them MMDetection's names.

    DataParallel's prefix ``module.`` is ignored.

    Args:
        keys: The keys of a state dict.
        path: The file, which errors name.
        prefix: The prefix of the backbone's keys, such as 'backbone.'; found in the keys if None.

    Raises:
        ValueError: No key has the prefix, there is no ResNet or there are several, or two keys mean the same tensor.
    """
    keys = list(keys)
    key_of: dict[str, str] = {}
    for key in keys:
        name = key.removeprefix("module.")
        if name in key_of:
            raise ValueError(f"{path}: holds {name} twice, as {key_of[name]} and as {key}")
        key_of[name] = key
    prefix = find_prefix(key_of, path) if prefix is None else prefix.removeprefix("module.")
    if not any(name.startswith(prefix) for name in key_of):
        raise ValueError(f"{path}: no key begins with the prefix {prefix!r}; the first keys: {listed(keys)}")
    deep_stem = f"{prefix}conv1.0.weight" in key_of
    outer = prefix.removesuffix("backbone.")  # a classifier is beside 'backbone.'
    renamings = _renamings(deep_stem)
    names = Names(prefix)
    for name, key in key_of.items():
        classifier = _CLASSIFIER.match(name.removeprefix(outer)) if name.startswith(outer) else None
        inner = name.removeprefix(prefix)
        if classifier:
            _add(names.classifier, classifier.group(1), key, path, "head.fc.")
        elif name.startswith(prefix) and not _OUTSIDE.match(inner):
            _add(names.backbone, _renamed(inner, renamings), key, path)
        else:
            names.other.append(key)
    return names


def find_prefix(names: Iterable[str], path: str | Path) -> str:
    """Find the prefix of a ResNet's names; of several ResNets 'backbone.' is taken.

    Raises:
        ValueError: There is no ResNet, or there are several and none of them is 'backbone.'.
    """
    names = list(names)
    found = [match.group(1) for name in names if (match := _ANCHOR.match(name))]
    if not found:
        raise ValueError(
            f"{path}: no ResNet is in it: the key layer1.0.conv1.weight is missing; the first keys: {listed(names)}"
        )
    if "backbone." in found:
        return "backbone."
    if len(found) > 1:
        raise ValueError(f"{path}: holds several ResNets: give the prefix of one, of {', '.join(map(repr, found))}")
    return found[0]


def detector_keys(keys: Iterable[str]) -> list[str]:
    """The keys of a detector's parts other than its backbone."""
    return [key for key in keys if _DETECTOR.match(key.removeprefix("module."))]


def blocks_of(names: Iterable[str]) -> tuple[bool, tuple[int, ...]]:
    """Whether a backbone's blocks are bottlenecks, and how many each of its four stages has.

    Args:
        names: MMDetection's names, without prefix.
    """
    names = list(names)
    blocks = {match.groups() for name in names if (match := re.match(r"layer(\d)\.(\d+)\.", name))}
    counts = tuple(sum(stage == str(number) for stage, _ in blocks) for number in range(1, 5))
    return "layer1.0.conv3.weight" in names, counts


def depth_of(names: Iterable[str]) -> int | None:
    """A backbone's depth by its names, None if it is not one of :data:`DEPTHS`."""
    return DEPTHS.get(blocks_of(names))


def _add(names: dict[str, str], name: str, key: str, path: str | Path, label: str = "") -> None:
    if name in names:
        raise ValueError(f"{path}: holds {label}{name} twice, as {names[name]} and as {key}")
    names[name] = key


def attention_by_abbreviation() -> dict[str, type[Attention]]:
    """The attention layers whose weights are recognised, by the abbreviation in the names of their weights."""
    found: dict[str, type[Attention]] = {}
    for kind in attention_types().values():
        if kind.converted:
            found.setdefault(kind._abbr_, kind)  # a subclass comes after the class whose abbreviation it has
    return found


def released_name(name: str) -> str:
    """The name that the authors of an attention layer give a weight, from MMDetection's."""
    for abbreviation, kind in attention_by_abbreviation().items():
        if kind.after_stages:
            name = re.sub(rf"^layer(\d)\.{abbreviation}\.", rf"{abbreviation}\1.", name)
    return name


def _renamings(deep_stem: bool) -> list[tuple[str, str]]:
    """Regular expressions for layers' names in other libraries, and what replaces them."""
    found = list(_TIMM_DEEP_STEM) if deep_stem else []
    for abbreviation, kind in attention_by_abbreviation().items():
        if kind.after_stages:
            found.append((rf"^{abbreviation}(\d)\.", rf"layer\1.{abbreviation}."))
        found += [(rf"\.{re.escape(name)}", f".{abbreviation}.{own}") for name, own in kind.foreign_names.items()]
    return found


def _renamed(name: str, renamings: Iterable[tuple[str, str]]) -> str:
    for pattern, replacement in renamings:
        name = re.sub(pattern, replacement, name)
    return name
