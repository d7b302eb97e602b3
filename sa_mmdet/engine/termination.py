"""SIGTERM, by which slurm and clouds announce the end: noticed at the next step, by all processes at the same one."""

import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from mmengine.dist import all_reduce, is_distributed

_TOGETHER = 5.0  # seconds; slurm signals all processes of a job, and launchers among them pass it on
EXIT_STATUS = 128 + signal.SIGTERM  # as a shell reports a process that the signal ended


class Termination:
    """Catches SIGTERM while it is entered; another one, seconds later, ends the process at once, as without it.

    Several within these seconds are one: a process may get it from slurm, from torchrun, and from who began both. Only
    in the main thread of a process, since Python handles signals there alone.
    """

    def __init__(self) -> None:
        self.received = False
        self._first = 0.0  # when it was received
        self._before: Any = None
        self._group: Any = None

    def __enter__(self) -> "Termination":
        if threading.current_thread() is threading.main_thread() and self._is_default():
            self._before = signal.signal(signal.SIGTERM, self._receive)
        return self

    def __exit__(self, *error: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    @staticmethod
    def _is_default() -> bool:
        """Whether nobody else wants the signal, such as a launcher that handles it in this process."""
        return signal.getsignal(signal.SIGTERM) is signal.SIG_DFL

    def _receive(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.received:
            self.received, self._first = True, now
        elif now - self._first > _TOGETHER:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def connect(self) -> None:
        """Prepare to agree with the other processes of a distributed training; all of them call it."""
        if is_distributed() and dist.get_backend() != "gloo":
            try:
                self._group = dist.new_group(backend="gloo")  # on CPUs: no step waits for the GPU
            except RuntimeError:  # no gloo, or no network for it
                self._group = None

    def agreed(self) -> bool:
        """Whether any process has received the signal; all processes ask at the same steps and get the same answer."""
        return bool(self._reduced(self.received, "max"))

    def fewest(self, number: int) -> int:
        """The smallest of the numbers that the processes give; all of them call it."""
        return self._reduced(number, "min")

    def _reduced(self, number: int, operation: str) -> int:
        values = torch.tensor([int(number)])
        all_reduce(values, operation, self._group)
        return int(values.item())


class UndisturbedWorker:
    """Initialises a worker of a data loader that obeys SIGTERM from its training alone.

    Launchers send the signal to all processes of a training; one whose workers are gone cannot reach its next step.
    All attributes of the initialiser are still found here.

    Args:
        initialise: The data loader's own ``worker_init_fn``.
    """

    def __init__(self, initialise: Callable[[int], None] | None) -> None:
        self._initialise = initialise

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_initialise" not in self.__dict__:  # asked while it is unpickled
            raise AttributeError(name)
        return getattr(self._initialise, name)

    def __call__(self, worker: int) -> None:
        if hasattr(signal, "sigwaitinfo"):  # Linux
            # Threads that start later inherit the mask, so that the one that waits gets every signal.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            threading.Thread(target=_obey_parent_alone, args=(os.getppid(),), daemon=True).start()
        if self._initialise is not None:
            self._initialise(worker)


def _obey_parent_alone(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent and os.getppid() == parent:
        pass
    os._exit(0)  # as PyTorch's own workers do, whose other ends it reports as failures
