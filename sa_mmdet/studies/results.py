"""The folder of a study: whether it is of these configs, and which of its results can be compared."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from sa_mmdet.evaluation import TASKS
from sa_mmdet.evaluation.result_files import check_runs
from sa_mmdet.messages import listed
from sa_mmdet.untrusted import read_json


def check_study(path: Path, names: Sequence[str]) -> None:
    """Refuse a folder whose comparison is of other configs, which a new one would replace.

    Args:
        path: The file of the comparison; nothing is checked where there is none.
        names: The names of the configs to compare. More of them than before, or fewer, are no other study.

    Raises:
        ValueError: The folder holds another study, or its file cannot be read.
    """
    found = read_json(path) if path.is_file() else {}
    before = found.get("names") if isinstance(found, dict) else None
    others = {str(name) for name in before} if isinstance(before, list) else set()
    if others - set(names) and set(names) - others:
        raise ValueError(
            f"{path}: is the comparison of other configs ({listed(sorted(others))}): name another --work-dir for this "
            "study, or give them, too"
        )


def complete_results(
    task: str, folders: Mapping[str, Sequence[Path]]
) -> tuple[list[tuple[str, list[Path]]], list[str]]:
    """The result files of all runs of a study for a task.

    Args:
        task: 'bbox' or 'segm'.
        folders: The work directories of the runs, by their config's name.

    Returns:
        The files by the config's name, none if not all runs have them; and what is missing.

    Raises:
        ValueError: A file counts twice, or two runs of a config were tested in different ways.
    """
    files = {name: [folder / f"results.{task}.json" for folder in own] for name, own in folders.items()}
    every = [path for own in files.values() for path in own]
    missing = [path for path in every if not path.is_file()]
    if len(missing) == len(every):
        return [], []
    if missing:
        return [], [
            f"{TASKS[task]} AP is not compared, since {listed(missing)} are missing: remove the other results of "
            "their folders to have these runs tested anew"
        ]
    check_runs(files)
    return list(files.items()), []
