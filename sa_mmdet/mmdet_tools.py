"""Running MMDetection's own command-line tools after this package has been imported."""

import runpy
import sys
from pathlib import Path

import mmdet


def run_mmdet_tool(name: str) -> None:
    """Run one of MMDetection's own tools with the arguments of this process.

    Args:
        name: The tool's path in MMDetection's folder of tools, such as 'train.py'.

    Raises:
        FileNotFoundError: The installed MMDetection does not have this tool.
    """
    package = Path(mmdet.__file__).resolve().parent
    candidates = [package / ".mim" / "tools" / name, package.parent / "tools" / name]  # in a wheel, in a checkout
    for script in candidates:
        if script.is_file():
            # MMDetection's tool must see its own name. Launchers start this package's tool again in each process.
            sys.argv[0] = str(script)
            runpy.run_path(str(script), run_name="__main__")
            return
    raise FileNotFoundError(
        f"MMDetection has no tools/{name}; looked for {' and '.join(map(str, candidates))}: reinstall mmdet"
    )
