"""Replaces setup.py in an unpacked mmcv: runs mmcv's own setup.py, and compiles its operators in few units.

The environment's Python runs this. Changes to mmcv's own setup, and why:

- its version is read in a way that works in Python 3.13, where ``locals()`` does not show what ``exec`` defined;
- the C++ standard is the one that PyTorch's headers require; mmcv asks for C++17;
- no debugging symbols (the extension takes 2 MB instead of 80) and no warnings;
- OpenCV counts as installed, as it will be: mmcv then leaves it out of its requirements.
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
    """The C++ standard that PyTorch's headers require, such as 20; None if C++17 is enough.

    Args:
        headers: PyTorch's folder of headers.
    """
    path = headers / "torch" / "csrc" / "api" / "include" / "torch" / "all.h"
    required = re.search(r"error C\+\+(\d\d)", path.read_text()) if path.exists() else None
    return int(required.group(1)) if required and int(required.group(1)) > 17 else None


def portable(text: str) -> str:
    """Change mmcv's setup.py so that it reads its version in a way that works in every Python."""
    return text.replace(
        "return locals()['__version__']", "return __import__('runpy').run_path(version_file)['__version__']"
    )


def changed(extension: Callable[..., Any], standard: int | None, few: bool) -> Callable[..., Any]:
    """Wrap one of PyTorch's two classes of extensions, so that it compiles as described above.

    Args:
        extension: CppExtension or CUDAExtension.
        standard: The C++ standard; None for mmcv's own choice.
        few: Whether to compile in few units.
    """

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
            folder = Path("units")
            written = units.write([Path(path) for path in sources], folders, folder, jobs)
            sources = [str(path) for path in written]
            options["include_dirs"].insert(0, str((folder / units.HEADERS).resolve()))
        return extension(name, sources, *positional, **options)

    return make


def without_extensions(setup: Callable[..., Any], **options: Any) -> Any:
    """Call setuptools' setup for mmcv's Python files only: the maintained fork has no option for this."""
    return setup(**options | {"ext_modules": []})


def run() -> None:
    """Run mmcv's setup.py with the changes."""
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
    code = compile(portable(Path(PUBLISHED).read_text(encoding="utf-8")), "setup.py", "exec")
    exec(code, {"__name__": "__main__", "__file__": "setup.py"})
