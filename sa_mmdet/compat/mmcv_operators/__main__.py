"""A command that makes mmcv use the stand-ins for its operators also in programs that import mmdet first.

It writes a file to mmcv's folder, or deletes it.
"""

import argparse
import importlib.util
import sys
from pathlib import Path

from sa_mmdet.atomic_write import atomic_write_text

from . import compiled

LOADER = Path(__file__).with_name("loader.py")
TARGET = "_ext.py"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m sa_mmdet.compat.mmcv_operators",
        description="Where mmcv was installed without compiled operators, let those of torchvision stand in for them "
        "in every program of this environment, by a file in mmcv's folder. Programs that import sa_mmdet before "
        "mmdet, such as this repository's tools, need no such file.",
    )
    parser.add_argument("action", choices=["install", "remove"], help="write the file, or delete it")
    package = importlib.util.find_spec("mmcv")
    if package is None or not package.submodule_search_locations:
        sys.exit("mmcv is not installed: pip install mmcv-lite==2.1.0")
    folder = Path(package.submodule_search_locations[0])
    (install if parser.parse_args().action == "install" else remove)(folder)


def install(folder: Path) -> None:
    """Write the file atomically.

    Args:
        folder: mmcv's folder.
    """
    if compiled(folder):
        sys.exit(f"mmcv has compiled operators, {compiled(folder)[0]}: there is nothing to stand in for")
    atomic_write_text(folder / TARGET, LOADER.read_text())
    _record(folder, listed=True)
    print(f"Wrote {folder / TARGET}: torchvision's operators stand in for mmcv's.")


def remove(folder: Path) -> None:
    """Delete the file, if this command has written it.

    Args:
        folder: mmcv's folder.
    """
    path = folder / TARGET
    if not path.exists():
        sys.exit(f"there is no {path}")
    if "sa_mmdet" not in path.read_text():
        sys.exit(f"{path} was not written by this command: it is not deleted")
    path.unlink()
    _record(folder, listed=False)
    print(f"Deleted {path}.")


def _record(folder: Path, listed: bool) -> None:
    """Add the file to the list of those that pip deletes when it uninstalls mmcv, or remove it from the list."""
    entry = f"mmcv/{TARGET},,"
    for record in folder.parent.glob("*mmcv*.dist-info/RECORD"):
        lines = [line for line in record.read_text().splitlines() if line != entry]
        if any(line.startswith("mmcv/__init__.py,") for line in lines):
            atomic_write_text(record, "\n".join([*lines, *([entry] if listed else [])]) + "\n")


if __name__ == "__main__":
    main()
