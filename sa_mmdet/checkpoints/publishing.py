"""Checkpoints to publish: the weights without what only the training needs, with a hash in the file's name."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mmdet
import mmengine
import torch
from mmengine.logging import HistoryBuffer
from torch import Tensor

from sa_mmdet.atomic_write import replace_file, temporary_beside
from sa_mmdet.compat.downloads import digest
from sa_mmdet.untrusted import literal_config
from sa_mmdet.version import __version__

from . import files
from .conversion import convert_tensors, released

PARTS = ("model", "backbone")
NAMINGS = ("mmdet", "released")
_KEPT = ("cfg", "dataset_meta", "experiment_name", "epoch", "iter", "seed")  # entries of a checkpoint's meta


def publish(source: str | Path, target: str | Path, part: str = "model", naming: str = "mmdet") -> Path:
    """Write a checkpoint's weights, with a header that says what they are and a hash in the name.

    Args:
        source: A checkpoint of MMEngine, or a file that :func:`sa_mmdet.checkpoints.convert` takes.
        target: The file to write, .pth, .pth.tar or .safetensors; '-' and the first eight digits of the file's SHA-256
            are put before the suffix, where PyTorch looks for them.
        part: 'model' for all weights, 'backbone' for the backbone's alone.
        naming: 'mmdet', or for a backbone 'released', the names that the attention modules' authors use.

    Returns:
        The file that was written.

    Raises:
        FileNotFoundError: The source does not exist.
        ValueError: The source is not a file of weights, or its backbone is not known here, or the target cannot be
            written.
    """
    if part not in PARTS or naming not in NAMINGS or (part, naming) == ("model", "released"):
        raise ValueError(
            f"part={part!r} with naming={naming!r}: choose the part from {', '.join(PARTS)} and the naming from "
            f"{', '.join(NAMINGS)}; only a backbone has released names"
        )
    loaded = files.read(source)
    state: Mapping[str, Tensor] = files.tensors_of(loaded, source)
    files.check_finite(state, source)
    meta = _header(loaded, source)
    if part == "backbone":
        within = "backbone." if any(key.startswith("backbone.") for key in state) else None
        converted = convert_tensors(state, source, prefix=within)
        meta["backbone"] = converted.backbone
        state = released(converted.state)["state_dict"] if naming == "released" else converted.whole()
        if naming == "mmdet":
            state = {key: value for key, value in state.items() if key.startswith("backbone.")}
    return _named_by_content(Path(target), state, meta)


def _header(loaded: Any, source: str | Path) -> dict[str, Any]:
    """What is known about the weights: config, classes, versions, the last metrics.

    Raises:
        ValueError: The config that the file records is more than literals: whoever opens what is published with an
            unprotected MMEngine would run it.
    """
    meta = loaded.get("meta") if isinstance(loaded, Mapping) else None
    header = {key: meta[key] for key in _KEPT if key in meta} if isinstance(meta, Mapping) else {}
    if "cfg" in header:
        literal_config(header["cfg"], source)
    header["versions"] = dict(
        sa_mmdet=__version__, mmdet=mmdet.__version__, mmengine=mmengine.__version__, torch=torch.__version__
    )
    if isinstance(meta, Mapping) and isinstance(meta.get("metrics"), Mapping):
        header["metrics"] = dict(meta["metrics"])  # the file was published before
    hub = loaded.get("message_hub") if isinstance(loaded, Mapping) else None
    scalars = hub.get("log_scalars") if isinstance(hub, Mapping) else None
    if isinstance(scalars, Mapping):
        metrics = {
            name.removeprefix("val/"): float(buffer.current())
            for name, buffer in scalars.items()
            if isinstance(name, str) and name.startswith("val/") and not name.endswith("time") and _has_values(buffer)
        }
        header.update(dict(metrics=metrics) if metrics else {})
    return header


def _has_values(buffer: Any) -> bool:
    return isinstance(buffer, HistoryBuffer) and len(buffer.data[0]) > 0


def _named_by_content(target: Path, state: Mapping[str, Tensor], meta: dict[str, Any]) -> Path:
    match = re.fullmatch(r"(.+?)((?:\.pth|\.pt|\.ckpt)?(?:\.tar)?|\.safetensors)", target.name)
    stem, suffix = match.groups() if match else (target.name, "")
    if not suffix:
        raise ValueError(f"{target}: does not end in .pth, .pth.tar or .safetensors")
    with temporary_beside(target.with_name(f"{stem}{suffix}")) as temporary:
        files.write(temporary, state, meta)
        return replace_file(temporary, target.with_name(f"{stem}-{digest(temporary)[:8]}{suffix}"))
