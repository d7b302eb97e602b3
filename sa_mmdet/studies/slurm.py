"""Handing a study to slurm: an array job with a task per run, and a job that judges them afterwards."""

import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from sa_mmdet.atomic_write import atomic_write_text
from sa_mmdet.messages import one_line

_SCRIPT = """#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --open-mode=append
#SBATCH --requeue
# A task that is requeued goes on where it stopped: slurm sends SIGTERM first, at which a training saves where it is.
exec {command}
"""


def submit(
    tool: Path,
    arguments: Sequence[str],
    runs: int,
    jobs: int | None,
    gpus_per_run: int | None,
    options: str,
    folder: Path,
) -> str:
    """Submit the runs of a study, and after them its comparison.

    Args:
        tool: The tool that trains them.
        arguments: Its arguments, without those about slurm.
        runs: The number of runs.
        jobs: How many may run at a time; None for as many as slurm lets run.
        gpus_per_run: The GPUs that each run asks slurm for; None to leave that to ``options``.
        options: Further options for sbatch, such as '--partition=gpu --time=24:00:00'.
        folder: The study's folder, which all nodes see.

    Returns:
        A sentence with the numbers of the jobs.

    Raises:
        ValueError: There is no slurm here, or it refuses the jobs, for example an unknown partition.
    """
    if shutil.which("sbatch") is None:
        raise ValueError(
            "--slurm: there is no sbatch on this machine: call this on one from which jobs are submitted, or train "
            "here with --jobs"
        )
    try:
        own = shlex.split(options)
    except ValueError as error:
        raise ValueError(f"--slurm {options!r}: {error}: give options of sbatch") from error
    gpus = [] if gpus_per_run is None else [f"--gres=gpu:{gpus_per_run}"]
    logs = folder.resolve() / "slurm"
    logs.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(tool.resolve()), *arguments]
    training = _script(logs / "train.sh", command, ' --run "$SLURM_ARRAY_TASK_ID"')
    limit = "" if jobs is None else f"%{jobs}"
    array = _sbatch([_log(logs / "train-%a.log"), *own, *gpus, f"--array=1-{runs}{limit}", str(training)])
    judging = _script(logs / "judge.sh", command, " --judge")
    last = _sbatch([_log(logs / "judge.log"), *own, f"--dependency=afterany:{array}", str(judging)])
    return f"submitted {runs} runs as job {array}, and their comparison as job {last}; --status tells how far they are"


def _log(path: Path) -> str:
    """The option for a log: in a script, slurm would divide a path at its spaces."""
    return f"--output={str(path.parent).replace('%', '%%')}/{path.name}"


def _script(path: Path, command: Sequence[str], task: str) -> Path:
    atomic_write_text(path, _SCRIPT.format(name=f"sa_mmdet-{path.stem}", command=shlex.join(command) + task))
    return path


def _sbatch(arguments: Sequence[str]) -> str:
    """Submit a job, and return its number."""
    done = subprocess.run(["sbatch", "--parsable", *arguments], check=False, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"--slurm: sbatch refuses the job: {one_line(done.stderr, 300)}")
    return done.stdout.strip().partition(";")[0]
