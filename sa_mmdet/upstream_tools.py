"""Running the command-line tools of MMDetection and MMPretrain after this package has been imported."""

import importlib.util
import runpy
import sys
from pathlib import Path

_NAMES = {"mmdet": "MMDetection", "mmpretrain": "MMPretrain"}
_MISSING = {
    "mmdet": "MMDetection is not installed: mim install mmdet",
    "mmpretrain": "MMPretrain, which trains classifiers, is not installed: pip install mmpretrain, beside the "
    "torchvision that belongs to your PyTorch",
}


def run_tool(package: str, name: str) -> None:
    """Run one of the tools of MMDetection or MMPretrain with the arguments of this process.

    Args:
        package: 'mmdet' or 'mmpretrain'.
        name: The tool's path in the package's folder of tools, such as 'train.py'.

    Raises:
        SystemExit: The package is not installed, or does not have this tool.
    """
    try:
        script = find_tool(package, name)
    except FileNotFoundError as error:
        raise SystemExit(str(error)) from None
    # The tool must see its own name. Launchers start this package's tool again in each process.
    sys.argv[0] = str(script)
    runpy.run_path(str(script), run_name="__main__")


def find_tool(package: str, name: str) -> Path:
    """One of the tools of MMDetection or MMPretrain.

    Args:
        package: 'mmdet' or 'mmpretrain'.
        name: The tool's path in the package's folder of tools, such as 'train.py'.

    Raises:
        FileNotFoundError: The package is not installed, or does not have this tool.
    """
    found = importlib.util.find_spec(package)
    folders = [Path(place).resolve() for place in found.submodule_search_locations or ()] if found else []
    # In a wheel, and in a checkout.
    candidates = [path / "tools" / name for folder in folders for path in (folder / ".mim", folder.parent)]
    for script in candidates:
        if script.is_file():
            return script
    if not candidates:
        raise FileNotFoundError(_MISSING[package])
    raise FileNotFoundError(
        f"{_NAMES[package]} has no tools/{name}; looked for {' and '.join(map(str, candidates))}: reinstall {package}"
    )
