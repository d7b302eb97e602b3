"""The memory that is measured is what is in use, not what the allocator keeps."""

import ctypes
import subprocess
import sys

import pytest

# Allocates and frees many blocks of 1 to 4 MiB, of which some stay for a while, and prints what the process has left.
SCRIPT = """
import ctypes, random, sys
from sa_mmdet.analysis import memory
library = ctypes.CDLL("libc.so.6")
library.malloc.restype, library.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
library.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
if sys.argv[1] == "returned":
    memory._return_freed_memory()
before, numbers, held = memory._status("VmRSS"), random.Random(0), []
for _ in range(400):
    size = numbers.randrange(2**20, 2**22)
    held.append(library.malloc(ctypes.c_size_t(size)))
    library.memset(held[-1], 1, size)
    while len(held) > 20:
        library.free(held.pop(numbers.randrange(len(held))))
for block in held[:-1]:
    library.free(block)
print(memory._status("VmRSS") - before)
"""


@pytest.mark.long
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc")
def test_freed_memory_is_returned() -> None:
    found = {}
    for how in ("kept", "returned"):
        printed = subprocess.run([sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, check=True).stdout
        found[how] = int(printed) / 2**20
    assert found["returned"] < 6  # MiB: the last block, of 4 at most
    assert found["kept"] > 2 * found["returned"]  # by itself glibc keeps more
