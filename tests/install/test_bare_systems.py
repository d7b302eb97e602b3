"""The README's commands, exactly as written, on systems with only the packages that the README names.

Makes a minimal Debian with debootstrap, which needs root and takes some minutes; BARE_SYSTEMS=bookworm,trixie chooses
the releases. pip in it gets the configuration that pip has on this machine, while the test runs.
"""

import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from places import REPOSITORY

SUITES = os.environ.get("BARE_SYSTEMS", "bookworm,trixie").split(",")
CHECKOUT = "/opt/sa_mmdet"  # in the minimal system
HOURS = 3
# Environment variables with which pip and apt find their packages, and those of OpenMP: beside other jobs, threads that
# wait for each other should sleep (OMP_WAIT_POLICY=PASSIVE).
PASSED_ON = re.compile(r"PIP_.*|SSL_CERT_.*|REQUESTS_CA_BUNDLE|(https?|no)_proxy|OMP_.*", re.IGNORECASE)
PIP_FILES = ("/etc/pip.conf", "~/.config/pip/pip.conf", "~/.pip/pip.conf")

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("debootstrap") is None, reason="needs root and debootstrap"),
]


def blocks(text: str) -> list[list[str]]:
    """The shell commands of a Markdown text: one list per block, without comments."""
    found = re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [[shlex.join(shlex.split(line, comments=True)) for line in block.splitlines()] for block in found]


def copy(path: Path, root: Path) -> None:
    """Copy a file of this system to the same path of the minimal one; a link becomes a file."""
    target = root / path.relative_to("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    shutil.copyfile(path, target)


def folders_of_pip(environment: dict[str, str]) -> list[Path]:
    """The folders of this system in which pip looks for packages."""
    texts = [*environment.values(), *(Path(name).read_text() for name in pip_files())]
    paths = {Path(path) for text in texts for path in re.findall(r"(?:file://)?(/[\w./+-]+)", text)}
    # The pages of an index may link to files outside of its own folder: take two levels, such as /opt/index.
    return sorted({Path(*path.parts[:3]) for path in paths if path.is_dir() and not path.is_relative_to("/etc")})


def pip_files() -> list[str]:
    files = [Path(name).expanduser() for name in PIP_FILES]
    return [str(path) for path in files if path.exists()]


class Bare:
    """A minimal system in a folder. Its mounts exist only while a command runs."""

    def __init__(self, root: Path, suite: str) -> None:
        self._root = root
        subprocess.run(["debootstrap", "--variant=minbase", suite, str(root)], check=True, stdout=subprocess.DEVNULL)
        self._environment = {name: value for name, value in os.environ.items() if PASSED_ON.fullmatch(name)}
        certificates = [value for value in self._environment.values() if Path(value).is_file()]
        self._files = [Path(name) for name in ("/etc/resolv.conf", "/etc/hosts", *certificates, *pip_files())]
        self._folders = folders_of_pip(self._environment)
        checkout = str(root / CHECKOUT.lstrip("/"))
        subprocess.run(["git", "clone", "-q", "--no-local", str(REPOSITORY), checkout], check=True)

    def run(self, command: str) -> str:
        """Run a command line in its checkout; returns the output."""
        for path in self._files:  # before each command, since packages may replace the certificates
            copy(path, self._root)
        mounts = ["set -e", f"cd {shlex.quote(str(self._root))}", "mount -t proc proc proc", "mount --rbind /dev dev"]
        for folder in self._folders:
            inside = shlex.quote(f".{folder}")
            mounts += [f"mkdir -p {inside}", f"mount --bind {shlex.quote(str(folder))} {inside}"]
        inside = f"cd {CHECKOUT} && {command}"
        script = "\n".join([*mounts, f"exec chroot . /bin/bash -c {shlex.quote(inside)}"])
        base = dict(PATH="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", HOME="/root", LANG="C.UTF-8")
        environment = {**self._environment, **base, "DEBIAN_FRONTEND": "noninteractive"}
        outside = ["unshare", "--mount", "--propagation", "private", "/bin/sh", "-c", script]
        result = subprocess.run(
            outside, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, timeout=HOURS * 3600
        )
        assert result.returncode == 0, f"{command}\n{result.stdout[-5000:]}"
        return result.stdout


@pytest.fixture
def bare(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bare]:
    yield Bare(tmp_path / request.param, request.param)
    shutil.rmtree(tmp_path, ignore_errors=True)


@pytest.mark.parametrize("bare", SUITES, indirect=True)
def test_the_readmes_commands_work_on_a_minimal_system(bare: Bare) -> None:
    found = blocks((REPOSITORY / "README.md").read_text())
    [apt] = [line for block in found for line in block if line.startswith("apt-get install")]
    [commands] = [block for block in found if block[0] == "make demo"]
    assert commands == ["make demo", "make test"]
    [in_the_environment] = [block for block in found if block[0] == "source .venv/bin/activate"]
    bare.run(f"apt-get update && {apt}")
    for command in commands:
        start = time.monotonic()
        printed = bare.run(command)
        ready = re.findall(r"ready in .*", printed)
        print(f"{command}: {time.monotonic() - start:.0f} s; {' '.join(ready)}")
        assert bool(ready) == (command == "make demo")
    assert "Active repairs of other libraries" in bare.run(" && ".join(in_the_environment))


@pytest.mark.parametrize("bare", SUITES[:1], indirect=True)
def test_everything_that_a_minimal_system_lacks_is_reported_at_once(bare: Bare) -> None:
    bare.run("apt-get update && apt-get install -y make python3")
    with pytest.raises(AssertionError) as error:
        bare.run("make install")
    message = str(error.value)
    for missing in ("Python.h", "ensurepip", "a C++ compiler", "nothing has been downloaded yet"):
        assert missing in message
    [line] = re.findall(r"install it all: (.*)", message)
    bare.run(line)
    print(*re.findall(r"ready in .*", bare.run("make install")))
