"""A detector's backbone and neck for inference: as one network, without shuffles and batch norms, as an ONNX file."""

import copy
import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.utils import digit_version
from torch import Tensor, nn

from sa_mmdet.atomic_write import atomic_write
from sa_mmdet.attention import ShuffleAttention
from sa_mmdet.backbones.baked import bake, baked_config
from sa_mmdet.checkpoints import read, tensors_of
from sa_mmdet.compat.quiet import quiet_exporter
from sa_mmdet.messages import one_line


class FeatureExtractor(nn.Module):
    """Backbone and neck as one network: from normalised images, N x 3 x H x W, to feature maps.

    Args:
        backbone: The backbone.
        neck: The neck, whose feature maps are returned; None to return those of the backbone.
        obstacle: Why the backbone is not baked although that was asked for; None if it is, or was not asked for.
    """

    def __init__(self, backbone: Any, neck: Any = None, obstacle: str | None = None):
        super().__init__()
        self.backbone, self.neck, self.obstacle = backbone, neck, obstacle
        self.eval()

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        features = self.backbone(image)
        return tuple(features if self.neck is None else self.neck(features))


def load(cfg: Config, checkpoint: str | Path, baked: bool = False, neck: bool = True) -> FeatureExtractor:
    """Build the backbone and the neck of a detector's config, and load their weights.

    Args:
        cfg: The detector's config.
        checkpoint: Its weights.
        baked: Whether to merge shuffles and batch norms into the convolutions. Where that is impossible the backbone
            is as it was trained, and the network's ``obstacle`` says why.
        neck: Whether to include the neck, where the config has one.

    Raises:
        FileNotFoundError: The checkpoint does not exist.
        ValueError: The weights do not fit the config.
    """
    state = tensors_of(read(checkpoint), checkpoint)
    with DefaultScope.overwrite_default_scope(cfg.get("default_scope", "mmdet")):
        backbone = _loaded("backbone", cfg.model.backbone, state, checkpoint)
        own_neck = _loaded("neck", cfg.model.neck, state, checkpoint) if neck and cfg.model.get("neck") else None
        obstacle = None
        if baked:
            try:
                backbone = _baked(cfg.model.backbone, backbone)
            except ValueError as error:
                obstacle = one_line(error, 300)
    return FeatureExtractor(backbone, own_neck, obstacle)


def _baked(cfg: dict[str, Any], backbone: Any) -> Any:
    """The baked form of a backbone with this config, or a ValueError that says why there is none."""
    new_cfg, weights = baked_config(cfg), bake(backbone)
    baked = MODELS.build(new_cfg)
    baked.load_state_dict(weights)
    return baked


def _loaded(part: str, cfg: Any, state: dict[str, Tensor], checkpoint: str | Path) -> Any:
    model = MODELS.build({**cfg, "init_cfg": None})
    own = {key.removeprefix(f"{part}."): value for key, value in state.items() if key.startswith(f"{part}.")}
    try:
        model.load_state_dict(own)
    except RuntimeError as error:
        raise ValueError(f"{checkpoint}: does not fit the config's {part}: {one_line(error, 300)}") from error
    return model


def bake_detector(cfg: Config, checkpoint: str | Path) -> tuple[Config, dict[str, Tensor], float]:
    """Merge the shuffles and batch norms of a detector's or classifier's backbone into its convolutions.

    Args:
        cfg: The model's config.
        checkpoint: Its weights.

    Returns:
        The config with the baked backbone, the weights of the whole model, and the largest difference that rounding the
        weights makes to an output of the backbone on a random image, divided by the largest output.

    Raises:
        FileNotFoundError: The checkpoint does not exist.
        ValueError: The weights do not fit, or the backbone has no shuffles, or none that can be baked.
    """
    new = Config(cfg.to_dict())
    new.model.backbone = baked_config(cfg.model.backbone)
    state = tensors_of(read(checkpoint), checkpoint)
    with DefaultScope.overwrite_default_scope(cfg.get("default_scope", "mmdet")):
        backbone = _loaded("backbone", cfg.model.backbone, state, checkpoint)
        before, after = FeatureExtractor(backbone), FeatureExtractor(_baked(cfg.model.backbone, backbone))
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, 3, 224, 224, generator=generator).double()
    rest = {key: value for key, value in state.items() if not key.startswith("backbone.")}
    own = {f"backbone.{key}": value.clone() for key, value in after.backbone.state_dict().items()}
    with torch.no_grad():  # in float64, in which the rounding of the arithmetic is negligible
        pairs = list(zip(before.double()(image), after.double()(image), strict=True))
    difference = max(((one - other).abs().max() / one.abs().max()).item() for one, other in pairs)
    return new, own | rest, difference


def export_onnx(model: FeatureExtractor, target: str | Path) -> list[str]:
    """Write a network as an ONNX file with dynamic batch, height and width.

    Args:
        model: The network; it is not changed.
        target: The .onnx file, written atomically.

    Returns:
        The names of the outputs; the input is called 'image'.

    Raises:
        ValueError: A library is missing, PyTorch is too old, or the file cannot be written.
    """
    if digit_version(torch.__version__) < digit_version("2.6.0"):  # the exporter takes dynamic sizes from then on
        raise ValueError(f"the export needs PyTorch 2.6 or later, found {torch.__version__}: pip install 'torch>=2.6'")
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"the export needs {' and '.join(missing)}: pip install {' '.join(missing)}")
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, ShuffleAttention):  # the exporter knows only PyTorch's own operators
            module.implementation = "reference"
    example = torch.randn(2, 3, 128, 160)
    with torch.no_grad():
        names = [f"feature{i}" for i in range(len(model(example)))]
        sizes = {0: torch.export.Dim("batch"), 2: torch.export.Dim("height"), 3: torch.export.Dim("width")}
        try:
            with atomic_write(target) as temporary, quiet_exporter():
                torch.onnx.export(
                    model,
                    (example,),
                    temporary,
                    input_names=["image"],
                    output_names=names,
                    dynamic_shapes=(sizes,),
                    dynamo=True,
                    external_data=False,
                    verbose=False,
                )
        except OSError as error:
            raise ValueError(f"{target}: cannot be written: {error}") from error
    return names


def largest_difference(model: FeatureExtractor, file: str | Path, images: Iterable[Tensor]) -> float:
    """Compare a network's outputs in PyTorch with those of an ONNX file in ONNX Runtime.

    Args:
        model: The network, as it was trained: comparing a baked one with its own file shows no mistake in baking.
        file: The ONNX file.
        images: Normalised images, each N x 3 x H x W.

    Returns:
        The largest absolute difference of an output, divided by the largest output.

    Raises:
        ValueError: ONNX Runtime is missing.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        raise ValueError("the check needs onnxruntime: pip install onnxruntime")
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    worst = 0.0
    for image in images:
        with torch.no_grad():
            expected = model(image)
        for one, other in zip(expected, session.run(None, {"image": image.numpy()}), strict=True):
            scale = one.abs().max().item()
            worst = max(worst, float(np.abs(one.numpy() - other).max()) / scale)
    return worst
