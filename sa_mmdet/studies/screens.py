"""What a study shows while it runs: a bar per run on a terminal, and lines elsewhere."""

import io
import sys
import threading
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from .status import clock
from .training import Training

_EVERY = 2.0  # seconds


def say(text: object) -> None:
    """Print a line, if anybody reads it still: a study does not end with the pipe or the disk that its lines go to."""
    try:
        print(text, flush=True)
    except OSError:
        sys.stdout = io.StringIO()  # what other packages print ends it as little


class Lines:
    """A line for each run that begins and ends; on a terminal also a bar for each that runs, with the time left."""

    def __init__(self) -> None:
        self._console = Console(soft_wrap=True, highlight=False, markup=False)
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.fields[said]}"))
        self._bars = Progress(*columns, console=self._console, transient=True, disable=not sys.stdout.isatty())
        self._running: dict[Training, TaskID] = {}
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._refresh, daemon=True)

    def __enter__(self) -> "Lines":
        if sys.stdout.isatty():
            self._bars.start()
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._bars.stop()

    def say(self, text: str) -> None:
        """Print a line."""
        if sys.stdout.isatty():
            self._console.print(text)
        else:
            say(text)

    def begins(self, run: Training) -> None:
        """Show the run's bar."""
        with self._lock:
            self._running[run] = self._bars.add_task(run.name, total=1.0, said="begins")

    def ends(self, run: Training) -> None:
        """Take the run's bar away."""
        with self._lock:
            self._bars.remove_task(self._running.pop(run))

    def _refresh(self) -> None:
        while not self._ended.wait(_EVERY):
            with self._lock:
                for run, bar in self._running.items():
                    found = run.progress()
                    if (run.folder / "new").is_dir():
                        self._bars.update(bar, completed=1.0, said="is tested")
                    elif found is not None:
                        said = f"{found.where}, {clock(found.left)} left"
                        self._bars.update(bar, completed=found.done, said=said)
