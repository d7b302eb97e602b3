"""Which runs are of one variant: those that were trained alike, but for the seed and where their files are."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sa_mmdet.messages import listed

from .runs import Run

_TRAINING = ("model", "train_dataloader", "optim_wrapper", "param_scheduler", "train_cfg")
# What says where files are or how fast they are read, and not what is trained.
_ELSEWHERE = ("data_root", "num_workers", "persistent_workers", "pin_memory", "prefetch_factor", "backend_args")


def tell_apart(runs: Sequence[Run]) -> list[str]:
    """Give runs that were trained differently variants of different names, and say how the variants differ.

    Args:
        runs: The runs; those whose names alone are the same get the name of their work directory, too.

    Returns:
        What a report must say, one sentence each.
    """
    notes = []
    named: dict[str, list[Run]] = {}
    for run in runs:
        named.setdefault(run.variant, []).append(run)
    for name, own in named.items():
        kinds: dict[str, list[Run]] = {}
        for run in own:
            kinds.setdefault(json.dumps(_training(run), sort_keys=True, default=str), []).append(run)
        if len(kinds) == 1:
            continue
        folders = [_config_name(group[0]) for group in kinds.values()]
        for folder, group in zip(folders, kinds.values(), strict=True):
            label = folder if folders.count(folder) == 1 else group[0].name
            for run in group:
                run.distinction = label
        first, *others = (group[0] for group in kinds.values())
        different = {key: None for other in others for key in _differing(_training(first), _training(other))}
        notes.append(
            f"{name}: not all runs were trained alike, they differ in {listed(different)}: "
            f"so they are {len(kinds)} variants"
        )
    for kind, values in (("detectors", [run.family for run in runs]), ("backbones", [run.backbone for run in runs])):
        if len(set(values)) > 1:
            known = listed(dict.fromkeys(values))
            notes.append(
                f"the runs have different {kind} ({known}): a difference between them is not that of attention"
            )
    return notes


def _config_name(run: Run) -> str:
    """The name of a run's folder; for run_comparison's WORK_DIR/<config>/seed<n> that of the config."""
    return run.name.rpartition("/")[0] or run.name


def _training(run: Run) -> dict[str, Any]:
    return {key: _without_places(run.cfg.get(key)) for key in _TRAINING}


def _without_places(value: Any) -> Any:
    """A part of a config without its folders."""
    if isinstance(value, Mapping):
        return {str(key): _without_places(own) for key, own in value.items() if key not in _ELSEWHERE}
    if isinstance(value, list | tuple):
        return [_without_places(own) for own in value]
    return value.rstrip("/").rpartition("/")[2] if isinstance(value, str) else value


def _differing(one: Any, other: Any, where: str = "") -> Iterator[str]:
    """The keys of two parts of configs that differ, such as 'model.neck.type'."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in [*one, *(key for key in other if key not in one)]:
            yield from _differing(one.get(key), other.get(key), f"{where}.{key}" if where else key)
    elif one != other:
        yield where
