"""Help for the tools."""

import runpy
import sys
from pathlib import Path

import mmdet


def run_mmdet_tool(name: str) -> None:
    """Run one of MMDetection's own tools with the arguments of this process.

    Args:
        name: Path below MMDetection's tools folder, such as 'train.py'.

    Raises:
        FileNotFoundError: The MMDetection that is installed has no such tool.
    """
    package = Path(mmdet.__file__).resolve().parent
    candidates = [package / ".mim" / "tools" / name, package.parent / "tools" / name]  # a wheel's, a checkout's
    for script in candidates:
        if script.is_file():
            # Launchers start this very file again in each process: only its place in sys.argv is MMDetection's.
            sys.argv[0] = str(script)
            runpy.run_path(str(script), run_name="__main__")
            return
    raise FileNotFoundError(
        f"MMDetection has no tools/{name}; looked at {' and '.join(map(str, candidates))}: reinstall mmdet"
    )
