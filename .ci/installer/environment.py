"""The virtual environment: made, mended after a kill, asked what is in it, and held by one set-up at a time."""

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
    """A folder with a Python of its own."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.python = settings.python

    def exists(self) -> bool:
        return self.python.exists()

    def problem(self, code: str) -> str | None:
        """None if the environment's Python runs the code, else what it printed on errors."""
        result = subprocess.run([self.python, "-c", code], capture_output=True, text=True, cwd="/")
        return None if result.returncode == 0 else result.stderr.strip() or f"ended with {result.returncode}"

    def output(self, code: str, *arguments: str) -> str:
        command = [str(self.python), "-c", code, *arguments]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout

    def path(self, name: str) -> Path:
        """One of the paths that sysconfig names."""
        return Path(self.output(f"import sysconfig; print(sysconfig.get_path({name!r}))").strip())

    def installed(self, *names: str) -> set[str]:
        """Those of these packages that an installer has finished."""
        code = f"import importlib.metadata as m; print(*({set(names)!r} & set(m.packages_distributions())))"
        return set(self.output(code).split())

    def versions(self, *names: str) -> dict[str, str]:
        """The versions of those of these distributions that are installed."""
        code = "import importlib.metadata as m; print(*(f'{d.name}=={d.version}' for d in m.distributions()))"
        pairs = (pair.split("==", 1) for pair in self.output(code).split())
        return {name: version for name, version in pairs if name in names}

    def torch_version(self) -> tuple[int, ...]:
        # By its metadata: importing PyTorch before numpy is there makes it complain.
        version = self.output("import importlib.metadata; print(importlib.metadata.version('torch'))")
        return tuple(int(part) for part in version.split(".")[:2])

    def torch_facts(self) -> dict[str, Any]:
        """What compiled operators depend on."""
        return json.loads(self.output(_FACTS))

    def make(self) -> None:
        """Make the environment, anew where a kill left half of one."""
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

    def mend(self) -> None:
        """After a kill: let pip install anew what it had not finished."""
        since = self.settings.unfinished.stat().st_mtime
        for line in self.output(_HALF_INSTALLED, str(since)).splitlines():
            say(f"an earlier set-up was stopped while it installed {Path(line).name}: installing that anew")
            shutil.rmtree(line)

    def check_stack(self) -> None:
        """Refuse a name that is none, and to put one stack's files over the other's."""
        stack, venv = self.settings.stack, self.settings.venv
        for other in STACKS.keys() - {stack}:
            find = f"import importlib.metadata; importlib.metadata.version({STACKS[other]['mmengine']!r})"
            if self.exists() and self.problem(find) is None:
                fail(f"{venv} holds STACK={other}, whose files {stack} would write over: make ... VENV=DIR for another")


class Lock:
    """Held by one process and its children; another waits, and says so."""

    def __init__(self, path: Path, what: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = path.open("w")
        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another make install is at work on {what}; waiting until it has finished")
            fcntl.flock(self._stream, fcntl.LOCK_EX)

    @property
    def descriptor(self) -> int:
        """For children to keep open: what they do must end before another set-up starts, even if this one is killed."""
        return self._stream.fileno()

    def release(self) -> None:
        self._stream.close()
