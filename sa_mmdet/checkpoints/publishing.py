"""Files for others: a training's weights without what only the training needs, named by their content."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mmdet
import mmengine
import torch
from torch import Tensor

from sa_mmdet.version import __version__

from . import files
from .conversion import convert_tensors, digest, released

PARTS = ("model", "backbone")
NAMINGS = ("mmdet", "released")
_KEPT = ("cfg", "dataset_meta", "experiment_name", "epoch", "iter", "seed")  # of a checkpoint's meta


def publish(source: str | Path, target: str | Path, part: str = "model", naming: str = "mmdet") -> Path:
    """Write a checkpoint's weights with a header that says what they are, and a hash in the name.

    Args:
        source: A checkpoint of MMEngine or a file that :func:`sa_mmdet.checkpoints.convert` takes.
        target: The file to write, .pth, .pth.tar or .safetensors; '-' and the first eight digits of the file's SHA-256
            come before the suffix, where PyTorch looks for them.
        part: 'model' for all weights, 'backbone' for the backbone's alone.
        naming: 'mmdet', or for a backbone 'released', the names of the attention modules' authors.

    Returns:
        The file.

    Raises:
        FileNotFoundError: There is no such source.
        ValueError: The source is no file of weights, or has no backbone known here; the target cannot be written.
    """
    if part not in PARTS or naming not in NAMINGS or (part, naming) == ("model", "released"):
        raise ValueError(
            f"part={part!r} with naming={naming!r}: choose the part of {', '.join(PARTS)}, the naming of "
            f"{', '.join(NAMINGS)}; only a backbone has released names"
        )
    loaded = files.read(source)
    state: Mapping[str, Tensor] = files.tensors_of(loaded, source)
    files.check_finite(state, source)
    meta = _header(loaded)
    if part == "backbone":
        within = "backbone." if any(key.startswith("backbone.") for key in state) else None
        converted = convert_tensors(state, source, prefix=within)
        meta["backbone"] = converted.backbone
        state = released(converted.state)["state_dict"] if naming == "released" else converted.whole()
        if naming == "mmdet":
            state = {key: value for key, value in state.items() if key.startswith("backbone.")}
    return _named_by_content(Path(target), state, meta)


def _header(loaded: Any) -> dict[str, Any]:
    """What is known of the weights: config, classes, versions, the last metrics."""
    meta = loaded.get("meta") if isinstance(loaded, Mapping) else None
    header = {key: meta[key] for key in _KEPT if key in meta} if isinstance(meta, Mapping) else {}
    header["versions"] = dict(
        sa_mmdet=__version__, mmdet=mmdet.__version__, mmengine=mmengine.__version__, torch=torch.__version__
    )
    if isinstance(meta, Mapping) and isinstance(meta.get("metrics"), Mapping):
        header["metrics"] = dict(meta["metrics"])  # of a file that was published before
    hub = loaded.get("message_hub") if isinstance(loaded, Mapping) else None
    scalars = hub.get("log_scalars") if isinstance(hub, Mapping) else None
    if isinstance(scalars, Mapping):
        metrics = {
            name.removeprefix("val/"): float(buffer.current())
            for name, buffer in scalars.items()
            if name.startswith("val/") and not name.endswith("time")
        }
        header.update(dict(metrics=metrics) if metrics else {})
    return header


def _named_by_content(target: Path, state: Mapping[str, Tensor], meta: dict[str, Any]) -> Path:
    match = re.fullmatch(r"(.+?)((?:\.pth|\.pt|\.ckpt)?(?:\.tar)?|\.safetensors)", target.name)
    stem, suffix = match.groups() if match else (target.name, "")
    if not suffix:
        raise ValueError(f"{target}: has no suffix of a file of weights: .pth, .pth.tar or .safetensors")
    aside = target.with_name(f".{stem}.{os.getpid()}{suffix}")
    try:
        files.write(aside, state, meta)
        final = target.with_name(f"{stem}-{digest(aside)[:8]}{suffix}")
        aside.replace(final)
    finally:
        aside.unlink(missing_ok=True)
    return final
