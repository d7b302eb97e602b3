"""mmcv's source distribution: downloading it with pip, and unpacking it."""

from __future__ import annotations

import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

from . import mmcv_setup
from .output import fail

# To learn a package's version, pip calls its build backend, here mmcv's setup.py, which needs PyTorch and, up to mmcv
# 2.1, fails on Python 3.13. The metadata are in the source distribution: this backend copies them and builds nothing.
_BACKEND = """
import pathlib


def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
    text = pathlib.Path("PKG-INFO").read_text(encoding="utf-8")
    fields = dict(line.split(": ", 1) for line in text.split("\\n\\n")[0].splitlines() if ": " in line)
    name = fields["Name"].replace("-", "_") + "-" + fields["Version"] + ".dist-info"
    folder = pathlib.Path(metadata_directory, name)
    folder.mkdir()
    (folder / "METADATA").write_text(text, encoding="utf-8")
    return name


class __legacy__:
    prepare_metadata_for_build_wheel = staticmethod(prepare_metadata_for_build_wheel)
"""


def fetch(pip: Callable[..., None], requirement: str, constraints: Path, folder: Path) -> Path:
    """Download a package's source distribution.

    Args:
        pip: Runs pip with these arguments and environment variables.
        requirement: The package's name.
        constraints: The file with its version.
        folder: The folder for the file.

    Returns:
        The downloaded file.
    """
    with tempfile.TemporaryDirectory() as replacement:
        backend = Path(replacement, "setuptools")
        backend.mkdir()
        (backend / "__init__.py").touch()
        (backend / "build_meta.py").write_text(_BACKEND)
        arguments = ("--no-deps", "--no-binary=:all:", "--no-build-isolation", "--use-pep517", "-c", str(constraints))
        environment = os.environ | {"PYTHONPATH": replacement}
        pip("download", *arguments, "-d", str(folder), requirement, environment=environment)
    found = [*folder.glob("*.tar.gz"), *folder.glob("*.zip")]
    if len(found) != 1:
        fail(f"pip downloaded {[path.name for path in found]} for {requirement}; one source distribution is expected")
    return found[0]


def unpack(sdist: Path, folder: Path) -> Path:
    """Unpack a source distribution and replace its setup.py by ours, which runs the original one.

    Returns:
        The folder with the sources.
    """
    shutil.unpack_archive(sdist, folder) if sdist.suffix == ".zip" else _untar(sdist, folder)
    [tree] = [path for path in folder.iterdir() if path.is_dir()]
    (tree / "setup.py").rename(tree / mmcv_setup.PUBLISHED)
    (tree / "setup.py").write_text(mmcv_setup.TEXT)
    return tree


def _untar(sdist: Path, folder: Path) -> None:
    with tarfile.open(sdist) as archive:
        if hasattr(tarfile, "data_filter"):
            archive.extractall(folder, filter="data")
        else:  # Python 3.10 and 3.11 before the releases of June 2023
            archive.extractall(folder)
