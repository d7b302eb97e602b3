"""What differs between the settings of two trainings: of their models, data, schedules and tests."""

import filecmp
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from sa_mmdet.messages import listed, printable

Differences = dict[str, tuple[Any, Any]]  # for each key, such as 'train_cfg.max_epochs', the two values

TRAINING = (
    "model",
    "data_preprocessor",
    "sync_bn",
    "train_dataloader",
    "train_cfg",
    "optim_wrapper",
    "param_scheduler",
    "auto_scale_lr",
    "load_from",
    "custom_hooks",
    "test_dataloader",
    "test_cfg",
    "test_evaluator",
)
# train.py and test.py load different checkpoints.
TEST = ("model", "data_preprocessor", "test_dataloader", "test_cfg", "test_evaluator")
ABSENT = "not set"
_LONGEST = 60  # characters of a value in a sentence
# What does not change the result, or where it is written.
_IGNORED = {
    "_scope_",
    "backend_args",
    "num_workers",
    "outfile_prefix",
    "persistent_workers",
    "pin_memory",
    "prefetch_factor",
}
# What MMPretrain's tools add to every data loader of a config, although it is what classifiers have without it.
_ADDED = {"collate_fn.type": "default_collate"}
_DATA_PATHS = {"ann_file", "data_root", "img", "img_path", "seg", "seg_map_path"}


def differences(first: Mapping[str, Any], other: Mapping[str, Any], parts: Sequence[str] = TRAINING) -> Differences:
    """Find what two configs set differently, apart from seeds, workers and the places of files.

    A path counts as the same if both name the same file, or if one of them is not on this machine and the names of the
    files are equal: a study may have been moved.

    Args:
        first: A config.
        other: Another one.
        parts: The entries of the configs to look at.
    """
    one, two = (dict(_leaves({part: cfg.get(part) for part in parts})) for cfg in (first, other))
    found = {}
    for key in dict.fromkeys((*one, *two)):
        values = one.get(key, ABSENT), two.get(key, ABSENT)
        known = all(isinstance(value, str | int | float) for value in values)  # not a class, which a record names
        same = values[0] == values[1] or set(values) == {ABSENT, _ADDED.get(key.partition(".")[2])}
        if known and not same and not _is_same_place(key.rpartition(".")[2], *values):
            found[key] = values
    return found


def told(found: Differences, limit: int = 3) -> str:
    """Say what differs, as in "train_cfg.max_epochs (12, 24)".

    Args:
        found: What :func:`differences` returns.
        limit: The number of settings to name.
    """
    return listed((f"{key} ({_value(one)}, {_value(two)})" for key, (one, two) in found.items()), limit)


def _value(value: Any) -> str:
    if value == ABSENT:
        return ABSENT
    text = printable(repr(value))
    return text if len(text) <= _LONGEST else f"{text[:20]}...{text[-_LONGEST + 20 :]}"  # a path differs at its end


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """The single values of nested dictionaries and lists, each with its key; what is None is as good as not there."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if name not in _IGNORED:
                yield from _leaves(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _leaves(inner, f"{key}.{number}")
    elif value is not None:
        yield key, value


def _is_same_place(name: str, one: Any, two: Any) -> bool:
    if not (isinstance(one, str) and isinstance(two, str)) or ABSENT in (one, two) or "\0" in one + two:
        return False
    is_data = name in _DATA_PATHS
    if not is_data and "/" not in one + two:
        return False
    here = [os.path.exists(path) for path in (one, two)]
    if all(here):
        return os.path.samefile(one, two) or (
            os.path.isfile(one) and os.path.isfile(two) and filecmp.cmp(one, two, shallow=False)
        )
    # Of two places that are not here, those of data and of pretrained weights may be of two machines. What a training
    # loads to start from is another's checkpoint, and those have the same names in all work directories.
    moved = is_data or name == "checkpoint" or any(here)
    return moved and (name == "data_root" or PurePath(one).name == PurePath(two).name)
