"""What the tests of the installer use instead of a real PyTorch and real programs."""

from pathlib import Path
from typing import Any

# What compiled operators depend on, as the installer asks an environment.
FACTS: dict[str, Any] = dict(
    version="2.13.0+cpu",
    git="abc",
    cuda=None,
    hip=None,
    abi=True,
    python="cpython-311-x86_64-linux-gnu",
    machine="x86_64",
    libc=["glibc", "2.36"],
    gpus=[],
    headers="/nowhere",
)


def executable(path: Path, script: str) -> None:
    """Write a shell script that can be run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
