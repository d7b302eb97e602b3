"""How the set-up compiles this package's own operators."""

import shutil
import sys
import sysconfig
import time
from pathlib import Path

import pytest
from installer import native, settings
from installer.commands import Commands
from installer.environment import Environment
from installer_stand_ins import executable
from places import REPOSITORY

from sa_mmdet.ops.native import library_name

# Writes the library that build_ext would compile, and how often it was asked.
SETUP = """
import pathlib, sys
from torch_name import NAME
pathlib.Path("asked").open("a").write("x")
if pathlib.Path("fails").exists():
    sys.exit("no compiler")
folder = pathlib.Path(sys.argv[sys.argv.index("--build-lib") + 1], "sa_mmdet", "ops", "native")
folder.mkdir(parents=True)
(folder / NAME).write_bytes(b"library")
"""


class Checkout:
    """A repository whose setup.py is a stand-in, and its set-up."""

    def __init__(self, root: Path, chosen: settings.Settings, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.folder = root, root / native.FOLDER
        self.folder.mkdir(parents=True)
        shutil.copy(REPOSITORY / native.FOLDER / "__init__.py", self.folder)

        self.library = self.folder / f"{library_name()}{sysconfig.get_config_var('EXT_SUFFIX')}"
        (root / "torch_name.py").write_text(f"NAME = {self.library.name!r}")
        (root / "setup.py").write_text(SETUP)
        monkeypatch.setattr(settings, "REPOSITORY", root)
        executable(chosen.python, f'cd "{root}" && PYTHONPATH="{root}" exec "{sys.executable}" "$@"')
        self.commands = Commands(Environment(chosen), steps=1)

    def compile(self) -> int:
        """Compile, and return how often setup.py has been asked to."""
        own = native.Native(self.commands)
        own.start()
        with self.commands.progress.step("operators", 1):
            own.finish()
        own.stop()
        asked = self.root / "asked"
        return len(asked.read_text()) if asked.exists() else 0


@pytest.fixture
def checkout(tmp_path: Path, chosen: settings.Settings, monkeypatch: pytest.MonkeyPatch) -> Checkout:
    return Checkout(tmp_path / "a checkout", chosen, monkeypatch)


@pytest.mark.long
def test_they_are_compiled_once_and_anew_after_a_change(checkout: Checkout) -> None:
    assert checkout.compile() == 1
    assert checkout.library.read_bytes() == b"library"
    assert checkout.compile() == 1
    source = checkout.folder / "kernels.cpp"
    source.touch()
    assert checkout.compile() == 2
    assert checkout.library.stat().st_mtime > source.stat().st_mtime
    assert [path.name for path in checkout.folder.glob("*.so*")] == [checkout.library.name]


def test_the_package_is_installed_without_them_where_they_do_not_compile(
    checkout: Checkout, capsys: pytest.CaptureFixture[str]
) -> None:
    (checkout.root / "fails").touch()
    assert checkout.compile() == 1
    assert "failed; pip tries again" in capsys.readouterr().out
    assert not list(checkout.folder.glob("*.so*"))


def test_nothing_is_left_of_a_set_up_that_was_stopped(checkout: Checkout) -> None:
    (checkout.root / "setup.py").write_text(f"import time\n{SETUP}\ntime.sleep(60)\n")
    own = native.Native(checkout.commands)
    own.start()
    asked = checkout.root / "asked"
    while not asked.exists() or not asked.read_text():  # it exists for a moment before anything is written
        time.sleep(0.01)
    own.stop()
    assert not list(checkout.folder.glob("*.so*"))
    (checkout.root / "setup.py").write_text(SETUP)
    assert checkout.compile() == 2
    assert checkout.library.exists()
