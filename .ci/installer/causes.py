"""Known causes of failures, recognised by a command's output, and what to do about each."""

from __future__ import annotations

import re
from typing import NamedTuple


class Cause(NamedTuple):
    """A cause of failure: the pattern by which its output is recognised, and the advice for the user."""

    name: str
    pattern: str
    way_out: str


# The first match counts. A cause that also produces the output of others comes before them: a full disk or a killed
# compiler breaks a build in many ways, and without a network pip finds no version of any package.
CAUSES = (
    Cause("disk", r"No space left on device|Disk quota exceeded", "the disk is full: free some space, or VENV=DIR"),
    Cause(
        "memory",
        r"Killed signal|signal terminated program|\bKilled\b|virtual memory exhausted|[Cc]annot allocate memory"
        r"|out of memory allocating|exit status 137|MemoryError",
        "the machine ran out of memory: make install MAX_JOBS=1 compiles one unit at a time",
    ),
    Cause(
        "network",
        r"Failed to establish a new connection|Temporary failure in name resolution|Name or service not known"
        r"|NameResolutionError|NewConnectionError|Network is unreachable|Read timed out|ReadTimeoutError"
        r"|ConnectTimeoutError|Connection (refused|reset|aborted|timed out|broken)|IncompleteRead|ProxyError"
        r"|CERTIFICATE_VERIFY_FAILED|IncompleteDownload",
        "the package index was not reached: check the network and pip's configuration (pip config list), then run "
        "make install again to continue",
    ),
    Cause(
        "headers",
        r"Python\.h: No such file",
        "Python's headers are missing: apt-get install python3-dev, or dnf install python3-devel",
    ),
    Cause(
        "opencv",
        r"lib(GL|xcb|X11|gthread-2\.0|glib-2\.0|SM|ICE|Xext)\.so\.\d+: cannot open shared object file",
        "OpenCV's build with windows needs a library of the system: pip install opencv-python-headless instead of "
        "opencv-python, or apt-get install libgl1 libxcb1 libglib2.0-0",
    ),
    Cause(
        "cuda version",
        r"detected CUDA version .* mismatches|CUDA version .* mismatch",
        "the CUDA toolkit has another version than PyTorch's CUDA: set CUDA_HOME to a toolkit of PyTorch's version",
    ),
    Cause(
        "cuda toolkit",
        r"CUDA_HOME environment variable is not set|nvcc['\"]?: (not found|No such file)|No such file.*nvcc",
        "no CUDA toolkit: install one of PyTorch's CUDA version and set CUDA_HOME",
    ),
    Cause(
        "standard",
        r"unrecognized command[- ]line option .-std=c\+\+\d\d|invalid value .c\+\+\d\d. in|'?c\+\+20'? is not defined",
        "the C++ compiler is too old for this PyTorch: install a newer one and set CXX, or choose an older PyTorch "
        "(make install TORCH=torch==2.13.0)",
    ),
    Cause(
        "compiler",
        r"(c\+\+|g\+\+|clang\+\+|gcc|cc)['\"]?: (command )?not found"
        r"|No such file or directory: '([^']*/)?(c\+\+|g\+\+|gcc|cc)'"
        r"|cannot execute .cc1plus|command '[^']*(g\+\+|gcc|cc|c\+\+)' failed: No such file",
        "no C++ compiler: apt-get install g++, or dnf install gcc-c++, or set CXX",
    ),
    Cause(
        "another pytorch",
        r"undefined symbol: \w*(c10|2at|at6|5torch|caffe2)|compiled (with|using) a different version of PyTorch",
        "these operators were compiled against another PyTorch",
    ),
    Cause(
        "python",
        r"requires a different Python|Requires-Python|from versions: none\)(.|\n)*No matching distribution"
        r"|No matching distribution found for torch",
        "pip's index has no such package for this Python and machine; if this Python is very new, use another one: "
        "make install PYTHON=python3.12 VENV=DIR",
    ),
    Cause("distribution", r"No matching distribution", "pip's index does not have this version of the package"),
)


def find(output: str) -> Cause | None:
    """Find the cause of a failure in a command's output; None if it is not a known one."""
    return next((cause for cause in CAUSES if re.search(cause.pattern, output)), None)
