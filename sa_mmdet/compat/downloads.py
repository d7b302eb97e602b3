"""Checkpoints by their addresses: downloaded, compared with the hash in their name, and kept apart by address."""

import hashlib
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import torch

from sa_mmdet.untrusted import RefusedFileError, read_torch

# Eight or more digits of the file's SHA-256 before the suffix, where PyTorch and OpenMMLab put them.
_HASH = re.compile(r"-([0-9a-f]{8,64})\.")
_DATE = re.compile(r"(19|20)\d{6}")
_BLOCK = 1 << 20  # bytes


def load_url(
    url: str,
    model_dir: str | None = None,
    map_location: Any = None,
    progress: bool = True,
    check_hash: bool = False,
    file_name: str | None = None,
    weights_only: Any = True,
) -> Any:
    """As :func:`torch.hub.load_state_dict_from_url`, strictly: nothing is run, nothing is unpacked into the cache.

    A file whose name holds its hash is compared with it, each time, and is shared with PyTorch's cache. Any other one
    is kept in a folder of its own address, so that no host can give a file to another one's address.

    Args:
        url: The address.
        model_dir: The cache; PyTorch's if None.
        map_location: As torch.load takes it.
        progress: Whether to show how far the download is.
        check_hash: Ignored, always true.
        file_name: The name to keep the file under; the one in the address if None.
        weights_only: Ignored, always true.

    Raises:
        RefusedFileError: The file does not have the hash in its name, or does not hold weights alone.
    """
    name = file_name or Path(unquote(urlparse(url).path)).name
    if not name or name != Path(name).name or name == "..":
        raise RefusedFileError(f"{url}: has no name of a file")
    found = _HASH.search(name)
    expected = found.group(1) if found and not _DATE.fullmatch(found.group(1)) else None
    folder = Path(model_dir or Path(torch.hub.get_dir()) / "checkpoints")
    if expected is None:
        folder /= hashlib.sha256(url.encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    if not path.exists():
        torch.hub.download_url_to_file(url, str(path), progress=progress)
    if expected is not None and not digest(path).startswith(expected):
        raise RefusedFileError(
            f"{url}: the file {path} does not have the SHA-256 {expected} that its name promises: remove it and try "
            "again, or, if you trust it, give its path in place of the address"
        )
    return read_torch(path, map_location)


def digest(path: str | Path) -> str:
    """Compute the SHA-256 of a file, in hexadecimal."""
    total = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(_BLOCK):
            total.update(block)
    return total.hexdigest()
