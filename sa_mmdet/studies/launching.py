"""Starting a training or a test in processes of its own, and ending it when this process is told to end."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from sa_mmdet.engine.termination import EXIT_STATUS
from sa_mmdet.upstream_tools import find_tool

DETECTOR_TOOLS = Path(__file__).resolve().parents[1] / ".mim" / "tools"
_running: set["subprocess.Popen[bytes]"] = set()
_lock = threading.RLock()  # a handler of a signal may interrupt another one
_ending = threading.Event()  # nothing begins any more


class Terminated(BaseException):
    """SIGTERM was received, by which slurm and clouds announce the end."""


def classifier_tools() -> Path:
    """The folder of the tools that train and test classifiers, which are MMPretrain's.

    Raises:
        ValueError: MMPretrain is not installed, or does not have them.
    """
    try:
        find_tool("mmpretrain", "train.py")
    except FileNotFoundError as error:
        raise ValueError(str(error)) from None
    return DETECTOR_TOOLS / "classifiers"


def command(tool: Path, processes: int, arguments: Sequence[object]) -> list[str]:
    """The command that starts a tool of OpenMMLab, with several processes by PyTorch's own launcher.

    Args:
        tool: The tool's path.
        processes: How many processes; they find each other on a free port of this machine.
        arguments: The tool's arguments.
    """
    own = [str(tool), *map(str, arguments)]
    if processes == 1:
        return [sys.executable, *own]
    launcher = ("-m", "torch.distributed.run", "--nnodes=1", f"--nproc-per-node={processes}")
    # The option comes first: the value list of --cfg-options would take it at the end.
    return [
        sys.executable,
        *launcher,
        "--rdzv-backend=c10d",
        "--rdzv-endpoint=localhost:0",
        own[0],
        "--launcher",
        "pytorch",
        *own[1:],
    ]


def environment(worker: int, jobs: int, processes: int, gpus: int) -> dict[str, str]:
    """The environment variables of one of several trainings at a time: its GPUs, or its share of the processors.

    Args:
        worker: The number of the worker, from 0.
        jobs: How many trainings run at a time.
        processes: How many processes each has.
        gpus: How many GPUs there are.
    """
    found = dict(os.environ)
    if gpus:
        if jobs > 1 or processes < gpus:
            visible = found.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
            found["CUDA_VISIBLE_DEVICES"] = ",".join(visible[worker * processes : (worker + 1) * processes])
    elif jobs * processes > 1:
        found.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // (jobs * processes))))
    return found


def run(arguments: Sequence[str], log: Path, variables: Mapping[str, str] | None, descriptors: Sequence[int]) -> int:
    """Run a command to its end; what it prints is appended to a log.

    Args:
        arguments: The command.
        log: The file.
        variables: The environment variables; this process's own if None.
        descriptors: File descriptors that it keeps open.

    Returns:
        Its exit status; that of SIGTERM if this process was told to end before it began.
    """
    with log.open("ab") as file, _lock:
        if _ending.is_set():
            return EXIT_STATUS
        process = subprocess.Popen(
            arguments, stdout=file, stderr=subprocess.STDOUT, env=variables, pass_fds=tuple(descriptors)
        )
        _running.add(process)
    try:
        return process.wait()
    finally:
        with _lock:
            _running.discard(process)


def was_stopped(status: int) -> bool:
    """Whether a command that ended with an exit status did so since it, or this process, was told to end."""
    told = (signal.SIGTERM, signal.SIGINT)
    return status != 0 and (_ending.is_set() or status in [*(-number for number in told), *(128 + n for n in told)])


@contextmanager
def passing_on_termination() -> Iterator[None]:
    """Pass SIGTERM on to all trainings, which then save where they are, and raise :class:`Terminated` here."""

    def pass_on(number: int, frame: FrameType | None) -> None:
        _ending.set()
        with _lock:
            for process in list(_running):
                process.send_signal(signal.SIGTERM)
        raise Terminated

    _ending.clear()
    before = signal.signal(signal.SIGTERM, pass_on)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        _ending.clear()
