"""Our setup.py for mmcv."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from installer import mmcv_setup, source


@pytest.mark.parametrize(("needed", "expected"), [(17, "-std=c++17"), (20, "-std=c++20")])
def test_the_cpp_standard_is_the_one_that_pytorch_requires(tmp_path: Path, needed: int, expected: str) -> None:
    header = tmp_path / "torch" / "csrc" / "api" / "include" / "torch" / "all.h"
    header.parent.mkdir(parents=True)
    header.write_text(f"#error C++{needed} or later compatible compiler is required to use PyTorch.")
    made: dict[str, Any] = {}
    standard = mmcv_setup.required_standard(tmp_path)
    extension = mmcv_setup.changed(lambda name, sources, **options: made.update(options), standard, few=False)
    extension("mmcv._ext", ["a.cpp"], extra_compile_args={"cxx": ["-std=c++17"], "nvcc": ["", "-std=c++17"]})
    assert made["extra_compile_args"] == {"cxx": [expected, "-w", "-g0"], "nvcc": [expected, "-w"]}


def test_mmcvs_setup_reads_its_version_in_every_python(tmp_path: Path) -> None:
    """The code of mmcv 2.1.0 fails in Python 3.13, where locals() does not show what exec defined."""
    (tmp_path / "version.py").write_text("__version__ = '2.1.0'\n")
    text = (
        "def get_version():\n    version_file = 'version.py'\n    with open(version_file) as f:\n"
        "        exec(compile(f.read(), version_file, 'exec'))\n    return locals()['__version__']\n\n\n"
        "print(get_version())\n"
    )
    portable = mmcv_setup.portable(text)
    assert portable != text
    assert subprocess.check_output([sys.executable, "-c", portable], cwd=tmp_path, text=True) == "2.1.0\n"


def test_our_setup_replaces_that_of_the_unpacked_sources(tmp_path: Path) -> None:
    tree = tmp_path / "mmcv-2.1.0"
    tree.mkdir()
    (tree / "setup.py").write_text("published")
    archive = shutil.make_archive(str(tmp_path / "mmcv-2.1.0"), "gztar", tmp_path, "mmcv-2.1.0")
    unpacked = source.unpack(Path(archive), tmp_path / "to here")
    assert (unpacked / mmcv_setup.PUBLISHED).read_text() == "published"
    assert (unpacked / "setup.py").read_text() == mmcv_setup.TEXT
