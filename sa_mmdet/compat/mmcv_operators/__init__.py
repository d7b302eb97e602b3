"""Stand-ins for mmcv's compiled operators where mmcv was installed without them (mmcv-lite, MMCV_WITH_OPS=0).

mmcv then loads the folder ``extension`` as its extension, ``mmcv._ext``. Python finds it in one of two ways:

* :func:`stand_in`, called when sa_mmdet is imported, for programs that import sa_mmdet before mmdet;
* a small file in mmcv's own folder, for programs that import mmdet first, such as ``mim train mmdet``:
  ``python -m sa_mmdet.compat.mmcv_operators install`` writes it, ``... remove`` deletes it.

In both ways an existing compiled extension has priority, even if it cannot be imported: the user must see its error.
"""

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

NAME = "mmcv._ext"
FOLDER = Path(__file__).parent / "extension"


class _Finder(MetaPathFinder):
    """Finds the stand-ins as mmcv's extension. Python asks it last, if no other finder has found one."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != NAME or any(compiled(Path(folder)) for folder in path or ()):
            return None
        return importlib.util.spec_from_file_location(
            name, FOLDER / "__init__.py", submodule_search_locations=[str(FOLDER)]
        )


def compiled(folder: Path) -> list[Path]:
    """List the compiled extensions in mmcv's folder, including those for other versions of Python.

    Args:
        folder: mmcv's folder.
    """
    return sorted(path for path in folder.glob("_ext.*") if path.suffix in (".so", ".pyd"))


def stand_in() -> None:
    """Make Python find the stand-ins as ``mmcv._ext`` if there is no such module. They are not loaded yet."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
