"""Stands in for setup.py in an unpacked mmcv: runs mmcv's own, with its operators in few units.

Run by the environment's Python. What is changed of mmcv's own setup, and why:

- its version is read in a way that Python 3.13 allows (``locals()`` no longer shows what ``exec`` defined);
- the C++ standard is the one that PyTorch's headers ask for, where mmcv asks for C++17;
- no debugging symbols (the extension has 2 MB instead of 80), no warnings;
- OpenCV is taken to be installed, as it is when the wheel is: mmcv then leaves it out of its requirements.
"""

from __future__ import annotations

import functools
import os
import re
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import units

PUBLISHED = "setup_as_published.py"
FEW = "SA_MMDET_FEW_UNITS"
NONE = "SA_MMDET_NO_OPERATORS"
EXTRA_INCLUDES = "SA_MMDET_CUDA_INCLUDES"
TEXT = f"""import sys
sys.path.insert(0, {str(Path(__file__).resolve().parent.parent)!r})
from installer.mmcv_setup import run
run()
"""


def required_standard(headers: Path) -> int | None:
    """The C++ standard that PyTorch's headers refuse to do without, if it is above 17."""
    path = headers / "torch" / "csrc" / "api" / "include" / "torch" / "all.h"
    required = re.search(r"error C\+\+(\d\d)", path.read_text()) if path.exists() else None
    return int(required.group(1)) if required and int(required.group(1)) > 17 else None


def mended(text: str) -> str:
    """mmcv's setup.py, with its version read in a way that every Python allows."""
    return text.replace(
        "return locals()['__version__']", "return __import__('runpy').run_path(version_file)['__version__']"
    )


def changed(extension: Callable[..., Any], standard: int | None, few: bool) -> Callable[..., Any]:
    """One of PyTorch's two kinds of extensions, made in few units and with the flags above."""

    def make(name: str, sources: list[str], *positional: Any, **options: Any) -> Any:
        arguments = options.get("extra_compile_args") or {}
        for key in arguments:
            flags = [flag for flag in arguments[key] if flag]
            if standard is not None:
                flags = [f"-std=c++{standard}" if re.fullmatch(r"-std=c\+\+1\d", flag) else flag for flag in flags]
            arguments[key] = [*flags, "-w", *(["-g0"] if key == "cxx" else [])]
        extra = [path for path in os.environ.get(EXTRA_INCLUDES, "").split(os.pathsep) if path]
        options["include_dirs"] = [*options.get("include_dirs", []), *extra]
        if few:
            folders = [Path(path) for path in options["include_dirs"]]
            jobs = int(os.environ["MAX_JOBS"])
            written = units.write([Path(path) for path in sources], folders, Path("units"), jobs)
            sources = [str(path) for path in written]
        return extension(name, sources, *positional, **options)

    return make


def without_extensions(setup: Callable[..., Any], **options: Any) -> Any:
    """setuptools' setup, for mmcv's Python alone: the fork has no option for it."""
    return setup(**options | {"ext_modules": []})


def run() -> None:
    """Do what setup.py was asked for."""
    import setuptools
    import torch
    from torch.utils import cpp_extension

    few = os.environ.get(FEW) == "1"
    standard = required_standard(Path(torch.__file__).parent / "include")
    for name in ("CppExtension", "CUDAExtension"):
        setattr(cpp_extension, name, changed(getattr(cpp_extension, name), standard, few))
    opencv = types.ModuleType("cv2")
    opencv.__dict__["__version__"] = "5.0.0"
    sys.modules["cv2"] = opencv
    if os.environ.get(NONE) == "1":
        setuptools.setup = functools.partial(without_extensions, setuptools.setup)
    code = compile(mended(Path(PUBLISHED).read_text(encoding="utf-8")), "setup.py", "exec")
    exec(code, {"__name__": "__main__", "__file__": "setup.py"})
