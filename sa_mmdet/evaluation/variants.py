"""Which runs are of one variant, so that they differ in the seed alone, and which of them count."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mmengine.config import Config

from sa_mmdet.messages import listed, printable, short

from .result_files import EMPTY
from .runs import Run
from .settings import Differences, differences, told

_LONGEST = 32  # characters of a setting that a variant is named by
_NAMED = 3  # variants whose differences a report says one by one


def by_variant(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """The runs of each variant, by the variant's name."""
    variants: dict[str, list[Run]] = {}
    for run in runs:
        variants.setdefault(run.variant, []).append(run)
    return variants


def distinguish(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """Give runs with the same attention but other settings variants of their own.

    Args:
        runs: The runs.

    Returns:
        The runs, in the same order, and a sentence for each variant that was taken apart.
    """
    found: dict[int, Run] = {}
    notes = []
    for name, own in by_variant(runs).items():
        groups = _alike(own)
        apart = [_apart(groups[0][0], group[0]) for group in groups]
        keys = list(dict.fromkeys(key for one in apart for key in one))
        labels = _labels(groups, keys) if len(groups) > 1 else [""]
        for group, label in zip(groups, labels, strict=True):
            found |= {id(run): replace(run, distinction=label) for run in group}
        if len(groups) > 1:
            every = {key: value for one in apart[1:] for key, value in one.items()}
            notes.append(
                f"the runs of {name} are not of one variant, since they differ in {told(every)}: they are taken for "
                f"{len(groups)} variants, {listed(labels)}"
            )
        notes += [
            f"{run.name}: its settings were changed between its starts: {told(run.changes)}"
            for run in own
            if run.changes
        ]
    return [found[id(run)] for run in runs], notes


def counted(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """Leave out runs that would count twice, and trainings that are behind the others of their variant.

    Args:
        runs: The runs, after :func:`distinguish`.

    Returns:
        The runs that count, and a sentence for each of the others, and for seeds that some variants lack.
    """
    kept, notes = [], []
    for own in by_variant(runs).values():
        last = 0 if _stops_early(own[0]) else max(run.metrics[-1][0] for run in own)
        seen: dict[str, Run] = {}
        for run in own:
            if run.metrics[-1][0] < last:
                notes.append(
                    f"{run.name} does not count: its last evaluation is of epoch {run.metrics[-1][0]}, others "
                    f"of its variant have {last}: let it finish"
                )
                continue
            marks = _marks(run)
            same = next((seen[mark] for mark in marks if mark in seen), None)
            if same is not None:
                what = "the same seed" if run.seed and run.seed == same.seed else f"the same {run.kind.found}"
                notes.append(f"{run.name} does not count: it has {what} as {same.name}, which is of the same variant")
                continue
            seen |= dict.fromkeys(marks, run)
            kept.append(run)
    return kept, [*notes, *_missing_seeds(kept)]


def other_differences(runs: Sequence[Run]) -> list[str]:
    """Say in what variants differ from the first, apart from their backbones.

    Args:
        runs: The runs, the baseline's first.
    """
    firsts = [own[0] for own in by_variant(runs).values()]
    names = short_names(runs)
    said, apart = [], []
    for kind, values in (
        (f"{runs[0].kind.name}s", [run.family for run in firsts]),
        ("backbones", [run.backbone for run in firsts]),
    ):
        if len(set(values)) > 1:
            said.append(
                f"the runs have different {kind} ({listed(dict.fromkeys(values))}): a difference between them is not "
                "that of attention"
            )
    for other in firsts[1:]:
        found = {k: v for k, v in differences(firsts[0].cfg, other.cfg).items() if not k.startswith("model.backbone")}
        if other.family != firsts[0].family:
            found = {key: values for key, values in found.items() if not key.startswith("model.")}
        if found:
            apart.append(
                f"{names[firsts[0].variant]} and {names[other.variant]} differ in more than the backbone, in "
                f"{told(found)}: what tells them apart may come from that"
            )
    if len(apart) > _NAMED:
        rest = f"{len(apart) - _NAMED} more variants differ from {names[firsts[0].variant]} in more than the backbone"
        apart[_NAMED:] = [rest]
    return said + apart


def short_names(runs: Iterable[Run]) -> dict[str, str]:
    """A name for each variant, without the parts that all of them have in common, such as the detector.

    Args:
        runs: The runs.

    Returns:
        The short names by :attr:`Run.variant`; no two are equal.
    """
    parts = {run.variant: (run.family, run.backbone, run.attention) for run in runs}
    ends = {run.variant: f" ({run.distinction})" if run.distinction else "" for run in runs}
    differ = [i for i in range(3) if len({one[i] for one in parts.values()}) > 1]
    kept = differ if differ and differ != [0] and differ != [1] else sorted({*differ, 2})
    return {name: " ".join(one[i] for i in kept) + ends[name] for name, one in parts.items()}


def _alike(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs with equal settings together, in the order of the first of each group."""
    groups: list[list[Run]] = []
    for run in runs:
        group = next((group for group in groups if not _apart(group[0], run)), None)
        if group is None:
            groups.append([run])
        else:
            group.append(run)
    return groups


def _apart(one: Run, other: Run) -> Differences:
    found = differences(one.cfg, other.cfg)
    for key in {*one.changes, *other.changes}:
        earlier = tuple(str(run.changes[key][0]) if key in run.changes else "as later" for run in (one, other))
        if earlier[0] != earlier[1]:
            found[f"{key} of an earlier start"] = (earlier[0], earlier[1])
    return found


def _labels(groups: Sequence[Sequence[Run]], keys: Sequence[str]) -> list[str]:
    """A label for each group, no two the same: what differs if that is short, or else its config's or a run's name."""
    labels = []
    for group in groups:
        values = {key: _setting(group[0].cfg, key) for key in keys}
        labels.append(", ".join(f"{key.rpartition('.')[2]}={value}" for key, value in values.items()))
    if len(set(labels)) < len(labels) or max(map(len, labels)) > _LONGEST:
        configs = [{run.name.rpartition("/")[0] for run in group} for group in groups]
        labels = [own.pop() if len(own) == 1 else "" for own in configs]
    if len(set(labels)) < len(labels) or not all(labels):
        labels = [f"like {group[0].name}" for group in groups]
    if len(set(labels)) < len(labels):
        labels = [f"like {group[0].folder}" for group in groups]
    return labels


def _setting(cfg: Config, key: str) -> str:
    part, *names = key.split(".")
    value: object = cfg.get(part)
    for name in names:
        if isinstance(value, Mapping):
            value = value.get(name)
        elif isinstance(value, list | tuple) and name.isdecimal() and int(name) < len(value):
            value = value[int(name)]
        else:
            value = None
    return "none" if value is None else printable(value) if isinstance(value, str) else short(value, _LONGEST)


def _stops_early(run: Run) -> bool:
    """Whether a training ends when it gets no better, so that its length says nothing."""
    hooks = run.cfg.get("custom_hooks")
    kinds = [hook.get("type") for hook in hooks if isinstance(hook, Mapping)] if isinstance(hooks, list | tuple) else []
    return any(str(kind).rpartition(".")[2] == "EarlyStoppingHook" for kind in kinds)


def _marks(run: Run) -> list[str]:
    """What two different runs of a variant do not have in common: the seed, and the detections or predictions."""
    marks = [] if run.seed is None else [f"seed {run.seed}"]
    paths = [path for task in run.kind.tasks if (path := run.results(task.name)) is not None]
    return marks + [f"{path.name} {_digest(path)}" for path in paths if path.stat().st_size > EMPTY]


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _missing_seeds(runs: Sequence[Run]) -> list[str]:
    variants, names = by_variant(runs), short_names(runs)
    seeds = {name: {str(run.seed) for run in own} for name, own in variants.items()}
    if any(run.seed is None for run in runs):
        return []
    every = set().union(*seeds.values())
    most = max(map(len, variants.values()), default=0)
    return [
        f"{names[name]} has no run with seed {listed(sorted(every - seeds[name]))}, which others have: train it, too"
        for name, own in variants.items()
        if len(own) < most and every - seeds[name]
    ]


def told_by_name(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """Leave out folders that are given twice, and call runs of the same name by their folders.

    Args:
        runs: The runs.

    Returns:
        The runs, no two of the same name, and a sentence for each folder that was given twice.
    """
    folders: dict[Path, Run] = {}
    notes = []
    for run in runs:
        if run.folder.resolve() in folders:
            notes.append(f"{run.folder} is given twice: it counts once")
        folders.setdefault(run.folder.resolve(), run)
    counts = Counter(run.name for run in folders.values())
    kept = [replace(run, name=str(run.folder)) if counts[run.name] > 1 else run for run in folders.values()]
    return kept, notes
