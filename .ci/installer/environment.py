"""The virtual environment: making it, repairing it after a kill, asking what it contains; and locks."""

from __future__ import annotations

import fcntl
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from .output import fail, say
from .settings import STACKS, Settings

_HALF_INSTALLED = """
import importlib.metadata, pathlib, sys
since = float(sys.argv[1])
for distribution in importlib.metadata.distributions():
    path = getattr(distribution, "_path", None)
    if path is None or path.suffix != ".dist-info" or path.stat().st_mtime < since:
        continue
    if not (path / "RECORD").exists() or not (path / "INSTALLER").exists():
        print(path)
"""

_FACTS = """
import json, platform, sys, sysconfig, torch
print(json.dumps(dict(
    version=torch.__version__,
    git=getattr(torch.version, "git_version", None),
    cuda=torch.version.cuda,
    hip=getattr(torch.version, "hip", None),
    abi=torch.compiled_with_cxx11_abi(),
    python=sysconfig.get_config_var("SOABI"),
    machine=platform.machine(),
    libc=platform.libc_ver(),
    gpus=sorted({torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())})
    if torch.cuda.is_available() else [],
    headers=torch.__path__[0] + "/include",
)))
"""


class Environment:
    """A virtual environment, which need not exist yet, or an existing environment of the user's.

    Args:
        settings: The user's choices.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.python = settings.python

    def exists(self) -> bool:
        """Whether the environment has a Python."""
        return self.python.exists()

    def problem(self, code: str) -> str | None:
        """Run code in the environment's Python; returns what it printed as an error, or None if it succeeded."""
        result = subprocess.run([self.python, "-c", code], capture_output=True, text=True, cwd="/")
        return None if result.returncode == 0 else result.stderr.strip() or f"ended with {result.returncode}"

    def output(self, code: str, *arguments: str) -> str:
        """Run code in the environment's Python and return what it printed."""
        command = [str(self.python), "-c", code, *arguments]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout

    def path(self, name: str) -> Path:
        """A path by its name in sysconfig, such as 'purelib'."""
        return Path(self.output(f"import sysconfig; print(sysconfig.get_path({name!r}))").strip())

    def installed(self, *names: str) -> set[str]:
        """Which of these packages are completely installed."""
        code = f"import importlib.metadata as m; print(*({set(names)!r} & set(m.packages_distributions())))"
        return set(self.output(code).split())

    def versions(self, *names: str) -> dict[str, str]:
        """The versions of these distributions; those that are not installed are left out."""
        code = "import importlib.metadata as m; print(*(f'{d.name}=={d.version}' for d in m.distributions()))"
        pairs = (pair.split("==", 1) for pair in self.output(code).split())
        return {name: version for name, version in pairs if name in names}

    def torch_version(self) -> tuple[int, ...]:
        """PyTorch's major and minor version."""
        # From its metadata: importing PyTorch without numpy prints a warning.
        version = self.output("import importlib.metadata; print(importlib.metadata.version('torch'))")
        return tuple(int(part) for part in version.split(".")[:2])

    def torch_facts(self) -> dict[str, Any]:
        """What compiled operators depend on."""
        return json.loads(self.output(_FACTS))

    def make(self) -> None:
        """Make the environment; one that a killed set-up left incomplete is made again."""
        if self.exists() and self.problem("import pip") is None:
            return
        if self.exists() and not (self.settings.venv / "pyvenv.cfg").exists():
            fail(f"{self.python} has no pip: install it there, or VENV=DIR for another environment")
        for name in ("bin", "lib", "lib64", "include", "pyvenv.cfg"):
            path = self.settings.venv / name
            if path.is_symlink() or path.is_file():
                path.unlink()
            elif path.exists():
                shutil.rmtree(path)
        subprocess.check_call([sys.executable, "-m", "venv", str(self.settings.venv)])

    def repair(self) -> None:
        """Remove the metadata of packages that a killed pip left incomplete, so that pip installs them again."""
        since = self.settings.unfinished.stat().st_mtime
        for line in self.output(_HALF_INSTALLED, str(since)).splitlines():
            say(f"an earlier set-up was stopped while it installed {Path(line).name}: installing it again")
            shutil.rmtree(line)

    def check_stack(self) -> None:
        """Exit with a message where installing this stack would overwrite the files of the other one."""
        stack, venv = self.settings.stack, self.settings.venv
        for other in STACKS.keys() - {stack}:
            find = f"import importlib.metadata; importlib.metadata.version({STACKS[other]['mmengine']!r})"
            if self.exists() and self.problem(find) is None:
                fail(
                    f"{venv} contains STACK={other}, whose files {stack} would overwrite: choose another environment "
                    "by make ... VENV=DIR"
                )


class Lock:
    """A lock that one process and its children hold. Another process prints a message and waits.

    Args:
        path: The file to lock.
        what: What the lock protects, for the message.
    """

    def __init__(self, path: Path, what: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = path.open("w")
        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another make install is running for {what}; waiting until it has finished")
            fcntl.flock(self._stream, fcntl.LOCK_EX)

    @property
    def descriptor(self) -> int:
        """The file descriptor that children keep open: they hold the lock even where this process is killed."""
        return self._stream.fileno()

    def release(self) -> None:
        """Give the lock up, unless children still hold it."""
        self._stream.close()
