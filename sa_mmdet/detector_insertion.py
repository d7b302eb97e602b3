"""Attention in a trained detector: its config and its checkpoint with attention, which predict what they did before."""

import copy
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mmdet
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import Tensor

from sa_mmdet.analysis import analyze
from sa_mmdet.analysis.agreement import compare_predictions
from sa_mmdet.atomic_write import atomic_write, check_folder
from sa_mmdet.attention import label_of
from sa_mmdet.checkpoints import read, tensors_of, write
from sa_mmdet.insertion import Listed, inserted, list_places
from sa_mmdet.insertion.configs import changes, merged
from sa_mmdet.insertion.layers import kind_of
from sa_mmdet.messages import listed, one_line

TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4}
_COUNTED_AT = (256, 256)
_ZOO = Path(mmdet.__file__).resolve().parent / ".mim" / "configs"
Layers = Mapping[str, Mapping[str, Any]]


@dataclass
class Result:
    """What was written, and what is known about it.

    Attributes:
        config: The config with attention.
        checkpoint: The weights with attention.
        places: For each attention layer its name, its type and its parameters.
        parameters: The parameters of the detector, and those of its attention among them.
        multiply_adds: The multiply-adds of the detector for an image of 256 x 256, and those of its attention among
            them; a text that says why they are not known.
        difference: The largest difference of a feature map or prediction, divided by the largest value; None if the
            detector changes, since attention replaces other layers or does not start as the identity.
        dtype: In which the two detectors were compared.
        detections: How many detections were compared.
    """

    config: Path
    checkpoint: Path
    places: list[tuple[str, str, int]]
    parameters: tuple[int, int]
    multiply_adds: tuple[int, int] | str
    difference: float | None
    dtype: torch.dtype
    detections: int


def places_of(config: str | Path) -> list[Listed]:
    """The places of a config's detector that take attention.

    Raises:
        ValueError: The config has no model, or it cannot be built.
    """
    cfg = _config(config_file(config))
    with _scope(cfg):
        return list_places(_built(cfg.model))


def insert_into_detector(
    config: str | Path,
    checkpoint: str | Path,
    folder: str | Path,
    attention: Layers,
    replace: Layers,
    exact: bool = True,
    images: Sequence[str | Path] = (),
) -> Result:
    """Write a detector's config and checkpoint with attention, and check that it predicts what it did without.

    Args:
        config: The detector's config, see :func:`config_file`, which the new one inherits from.
        checkpoint: Its weights.
        folder: Where to write; it is made if it does not exist.
        attention: For places of the detector, such as 'backbone.layer*', the config of the layer that goes behind.
        replace: For places of the detector, the config of the layer that goes there instead.
        exact: See :func:`sa_mmdet.insertion.insert`.
        images: Images on which the two detectors are compared; noise if there are none.

    Raises:
        FileNotFoundError: A file does not exist, or the folder in which ``folder`` should be.
        ValueError: A place or layer does not fit, the checkpoint is of another network or holds attention, or the
            predictions differ; nothing is written then.
    """
    folder, config = Path(folder), config_file(config)
    check_folder(folder)
    cfg = _config(config)
    new_config, new_checkpoint = _targets(folder, config, checkpoint, [*attention.values(), *replace.values()])
    changed = changes(cfg.model, attention, replace, exact)
    loaded = read(checkpoint)
    state = tensors_of(loaded, checkpoint)
    with _scope(cfg):
        _check_weights(_built(cfg.model), state, checkpoint, config)
        model = _built(merged(cfg.model, changed))
        model.load_state_dict(state)
    text = _Text(cfg, changed, new_checkpoint.name)
    with tempfile.TemporaryDirectory() as temporary:
        # The files themselves are compared, as the user will load them.
        trial = Path(temporary, new_config.name), Path(temporary, new_checkpoint.name)
        trial[0].write_text(text.inheriting_from(_base(config, trial[0].parent)))
        write(trial[1], model.state_dict(), _meta(loaded, trial[0]))
        found = compare_predictions((config, checkpoint), trial, images)
        keeps = exact and not replace
        if keeps and not found.difference <= TOLERANCE[found.dtype]:
            raise ValueError(
                f"the detector with attention differs by {found.difference:.1e} of the largest value, more than "
                f"{TOLERANCE[found.dtype]} in {found.dtype}: nothing was written"
            )
        folder.mkdir(exist_ok=True)
        with atomic_write(new_checkpoint) as unfinished:
            shutil.copyfile(trial[1], unfinished)
    with atomic_write(new_config) as unfinished:
        unfinished.write_text(text.inheriting_from(_base(config, folder)))
    layers = inserted(model)
    return Result(
        new_config,
        new_checkpoint,
        [(layer.weights[:-1], type(layer.attention).__name__, _size(layer.attention)) for layer in layers],
        (_size(model), sum(_size(layer.attention) for layer in layers)),
        _multiply_adds(cfg, changed),
        found.difference if keeps else None,
        found.dtype,
        found.detections,
    )


def config_file(config: str | Path) -> Path:
    """The file of a config: itself, or of one in MMDetection's package that is named such as 'mmdet::detr/NAME.py'."""
    package, _, name = str(config).rpartition("::")
    return _ZOO / name if package == "mmdet" else Path(config)


def _config(config: str | Path) -> Config:
    cfg = Config.fromfile(config)
    if "model" not in cfg:
        raise ValueError(f"{config}: has no model")
    if not isinstance(cfg.model.get("type"), str):
        raise ValueError(
            f"{config}: names its model by a class, as MMEngine's new style of configs does, from which no config of "
            "strings inherits: write type=WithAttention, module=... into it, see docs/insertion.md"
        )
    return cfg


def _scope(cfg: Config) -> Any:
    return DefaultScope.overwrite_default_scope(cfg.get("default_scope", "mmdet"))


def _built(model: Any) -> Any:
    cfg = copy.deepcopy(Config(dict(model=model)).model)
    return MODELS.build(cfg)


def _size(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _targets(
    folder: Path, config: str | Path, checkpoint: str | Path, layers: list[Mapping[str, Any]]
) -> tuple[Path, Path]:
    end = "-".join(dict.fromkeys(label_of(kind_of(layer)).lower() for layer in layers))
    new_config = folder / f"{Path(config).stem}_{end}.py"
    new_checkpoint = folder / f"{Path(checkpoint).stem.removesuffix('.pth')}_{end}.pth"
    for target, source in ((new_config, config), (new_checkpoint, checkpoint)):
        if target.exists() and Path(source).exists() and target.samefile(source):
            raise ValueError(f"{target} would be overwritten: name another folder")
    return new_config, new_checkpoint


def _check_weights(model: Any, state: Mapping[str, Tensor], checkpoint: str | Path, config: str | Path) -> None:
    """Load the weights into the detector as it is without attention."""
    own = set(model.state_dict())
    extra = [key for key in state if key not in own]
    present = [key for key in extra if ".inserted_" in key]
    if present:
        raise ValueError(f"{checkpoint}: holds attention already, {listed(present, 2)}: start from the one without")
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
        detail = "; ".join(
            f"{len(keys)} {problem}, such as {listed(sorted(keys), 2)}"
            for problem, keys in (("keys are missing", missing), ("keys are unexpected", extra))
            if keys
        )
        raise ValueError(
            f"{checkpoint}: are weights of another network than {config}: {detail or one_line(error, 200)}"
        ) from error


def _base(config: str | Path, folder: Path) -> str:
    """The config as one in a folder names it: one of MMDetection's own by its package, others by the way there."""
    path = Path(config).resolve()
    if path.is_relative_to(_ZOO):
        return f"mmdet::{path.relative_to(_ZOO).as_posix()}"
    return Path(os.path.relpath(path, folder.resolve())).as_posix()


def _meta(loaded: Mapping[str, Any], config: Path) -> dict[str, Any]:
    meta = loaded.get("meta")
    kept = {key: meta[key] for key in ("dataset_meta",) if key in meta} if isinstance(meta, Mapping) else {}
    return {**kept, "cfg": Config.fromfile(config).pretty_text}


class _Text:
    """The text of a config that adds attention to another.

    Args:
        cfg: The other config.
        changed: What changes in its model.
        checkpoint: The name of the file of weights beside the config.
    """

    def __init__(self, cfg: Config, changed: Mapping[str, Any], checkpoint: str):
        imports = (cfg.get("custom_imports") or {}).get("imports", [])
        modules = [*([imports] if isinstance(imports, str) else imports), "sa_mmdet"]
        self.lines = Config(
            dict(custom_imports=dict(imports=list(dict.fromkeys(modules))), model=changed)
        ).pretty_text.rstrip()
        self.checkpoint = checkpoint

    def inheriting_from(self, base: str) -> str:
        """The text, with the name of the other config."""
        weights = f'load_from = "{{{{ fileDirname }}}}/{self.checkpoint}"'
        return f'_base_ = "{base}"\n{self.lines}\n{weights}\n'


def _multiply_adds(cfg: Config, changed: Mapping[str, Any]) -> tuple[int, int] | str:
    try:
        with _scope(cfg):
            found = analyze(Config(dict(model=merged(cfg.model, changed))).model, _COUNTED_AT)
    except ValueError as error:
        return one_line(error, 150)
    return found.total, found.attention
