"""Where a network looked for each object it found: Grad-CAM and HiResCAM, by captum."""

import contextlib
import importlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
import torch
import torch.nn.functional as F
from mmdet.utils import get_test_pipeline_cfg
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import MODELS, DefaultScope
from numpy.typing import NDArray
from torch import Tensor, nn

from sa_mmdet.checkpoints import read, tensors_of

METHODS = ("gradcam", "hirescam")


@dataclass
class Found:
    """An object, or an image's class, and the map of its score."""

    name: str
    score: float
    box: tuple[float, float, float, float] | None  # left, top, right, bottom in pixels of the picture
    map: NDArray[np.float32]  # H x W of the picture, 0 to 1


class ActivationMaps:
    """Grad-CAM of a detector's objects or of a classifier's classes.

    Grad-CAM's map of a score is relu(sum over the channels of activation * mean gradient of the score), scaled to 0..1.
    It lights up wherever a channel is active that matters somewhere, which for one object among many may be beside it;
    HiResCAM takes each position's own gradient instead of the mean.

    Source: Grad-CAM, ICCV 2017 (arXiv 1610.02391), equations 1 and 2; HiResCAM (arXiv 2011.08891), equation 4; captum's
    LayerGradCam and LayerGradientXActivation.

    Args:
        config: The model's config.
        checkpoint: Its weights.
        layer: Dotted name of the layer; the last block of the backbone if None.
        method: 'gradcam' or 'hirescam'.
        device: A device of PyTorch.

    Raises:
        FileNotFoundError: There is no such checkpoint.
        ValueError: captum is missing, the weights do not fit, or there is no such layer.
    """

    def __init__(
        self,
        config: str | Path,
        checkpoint: str | Path,
        layer: str | None = None,
        method: str = "gradcam",
        device: str = "cpu",
    ):
        if method not in METHODS:
            raise ValueError(f"method={method!r} is unknown: choose one of {', '.join(METHODS)}")
        self.method = method
        if importlib.util.find_spec("captum") is None:
            raise ValueError("Grad-CAM needs captum: pip install captum")
        cfg = Config.fromfile(config)
        self.scope = cfg.get("default_scope", "mmdet")
        loaded = read(checkpoint)
        with self._in_scope():
            self.model: Any = MODELS.build({**cfg.model, "_scope_": self.scope})
            steps = get_test_pipeline_cfg(cfg)
            self.pipeline = Compose([step for step in steps if not step["type"].endswith("LoadAnnotations")])
        try:
            self.model.load_state_dict(tensors_of(loaded, checkpoint))
        except RuntimeError as error:
            raise ValueError(f"{checkpoint}: does not fit {config}: {' '.join(str(error).split())[:300]}") from error
        self.model.to(device).eval()
        self.layer = self._find_layer(layer)
        self.classes = _classes(cfg, loaded)

    def _in_scope(self) -> Any:
        return DefaultScope.overwrite_default_scope(self.scope)

    def _find_layer(self, name: str | None) -> nn.Module:
        if name is None:
            stage = [child for key, child in self.model.backbone.named_children() if key.startswith("layer")]
            if not stage:
                kind = type(self.model.backbone).__name__
                raise ValueError(f"{kind} has no stages layer1, layer2, ...: name a layer")
            return stage[-1][-1]
        layers = dict(self.model.named_modules())
        if name not in layers:
            near = [other for other in layers if other.startswith(name.rpartition(".")[0])][:8]
            raise ValueError(f"there is no layer {name!r}; there are {', '.join(near)}")
        return layers[name]

    def __call__(
        self, picture: str | Path, top: int = 4, threshold: float = 0.3
    ) -> tuple[NDArray[np.uint8], list[Found]]:
        """The best objects of a picture, or a classifier's best classes, with their maps.

        Args:
            picture: The file.
            top: How many.
            threshold: Scores below it are left out.

        Returns:
            The picture as the maps lie over it, H x W x 3 in OpenCV's order: the whole of it for a detector, for a
            classifier what its pipeline leaves of it; and what was found, the best first.

        Raises:
            ValueError: The file is no picture.
        """
        from captum.attr import LayerGradCam, LayerGradientXActivation

        with self._in_scope():
            shown, sample, image = self._read(picture)
            scores = _Scores(self.model, sample)
            with torch.no_grad():
                best = scores(image)[0]
            order = best.argsort(descending=True)[:top]
            explain = (LayerGradCam if self.method == "gradcam" else LayerGradientXActivation)(scores, self.layer)
            found = []
            for index in (int(i) for i in order if best[i] >= threshold):
                with _attached_scores():
                    attribution = explain.attribute(image, target=index).sum(1, keepdim=True).clamp(min=0)
                resized = shown.shape[:2] if scores.classifies else sample.img_shape
                found.append(
                    Found(
                        self._name(scores.labels[index]),
                        float(best[index]),
                        scores.boxes[index] if scores.boxes else None,
                        _at_picture_size(attribution.detach(), image.shape[-2:], resized, shown.shape),
                    )
                )
        return shown, found

    def _name(self, label: int) -> str:
        return self.classes[label] if label < len(self.classes) else str(label)

    def _read(self, picture: str | Path) -> tuple[NDArray[np.uint8], Any, Tensor]:
        try:
            shown = mmcv.imread(str(picture))
            if shown is None:
                raise ValueError("OpenCV cannot read it")
            data = self.pipeline(dict(img_path=str(picture), img_id=0))
        except Exception as error:  # whatever a broken file makes of the decoders
            raise ValueError(f"{picture}: no picture: {' '.join(str(error).split())}") from error
        if hasattr(self.model, "head"):  # of a classifier, whose pipeline crops
            shown = np.ascontiguousarray(data["inputs"].permute(1, 2, 0).numpy())
        sample = data["data_samples"]
        batch = self.model.data_preprocessor(dict(inputs=[data["inputs"]], data_samples=[sample]), False)
        return shown, sample, batch["inputs"]


class _Scores(nn.Module):
    """An image to the scores of what is found in it, 1 x S; keeps what they are of."""

    def __init__(self, model: Any, sample: Any):
        super().__init__()
        self.model, self.sample = model, sample
        self.classifies = hasattr(model, "head")
        self.labels: list[int] = []
        self.boxes: list[tuple[float, float, float, float]] = []

    def forward(self, image: Tensor) -> Tensor:
        if self.classifies:
            logits = self.model.head(self.model.extract_feat(image))
            self.labels = list(range(logits.shape[1]))
            return logits.softmax(1)
        [result] = self.model.predict(image, [self.sample], rescale=True)
        instances = result.pred_instances
        self.labels = instances.labels.tolist()
        self.boxes = [tuple(box) for box in instances.bboxes.tolist()]
        return instances.scores[None]


@contextlib.contextmanager
def _attached_scores() -> Iterator[None]:
    """Keep the graph behind a dense head's scores, which MMDetection cuts before it selects among them."""
    module: Any = importlib.import_module("mmdet.models.dense_heads.base_dense_head")
    original = module.select_single_mlvl

    def attached(levels: Any, index: int, detach: bool = True) -> Any:
        return original(levels, index, detach=False)

    module.select_single_mlvl = attached
    try:
        yield
    finally:
        module.select_single_mlvl = original


def _classes(cfg: Config, loaded: Any) -> list[str]:
    """From the checkpoint, from the config's data set, or from COCO."""
    meta = loaded.get("meta", {}) if isinstance(loaded, dict) else {}
    dataset = cfg.get("test_dataloader", {}).get("dataset", {})
    for known in (meta.get("dataset_meta"), dataset.get("metainfo")):
        classes = (known or {}).get("classes")
        if classes:
            return list(classes)
    from mmdet.datasets import CocoDataset

    return list(CocoDataset.METAINFO["classes"])


def _at_picture_size(
    attribution: Tensor, padded: Any, resized: tuple[int, int], picture: tuple[int, int]
) -> NDArray[np.float32]:
    """From the layer's size to the network's input, without its padding, to the picture's."""
    maps = F.interpolate(attribution.float(), tuple(padded), mode="bilinear", align_corners=False)
    maps = maps[:, :, : resized[0], : resized[1]]
    maps = F.interpolate(maps, tuple(picture[:2]), mode="bilinear", align_corners=False)[0, 0]
    return (maps / maps.max().clamp(min=torch.finfo(maps.dtype).tiny)).cpu().numpy()


def sheet(path: str | Path, picture: NDArray[np.uint8], rows: dict[str, list[Found]], top: int) -> None:
    """Draw what several networks found in a picture, a row each, each object with its box, class, score and map.

    Args:
        path: The image file to write, aside first.
        picture: H x W x 3 in OpenCV's order.
        rows: By the networks' names.
        top: Columns.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    height, width = picture.shape[:2]
    size = (3.2 * top, 0.4 + len(rows) * (3.2 * height / width + 0.3))
    figure, axes = pyplot.subplots(len(rows), top, figsize=size, squeeze=False, constrained_layout=True)
    for panels, (name, found) in zip(axes, rows.items(), strict=True):
        for column, panel in enumerate(panels):
            panel.set_xticks([])
            panel.set_yticks([])
            panel.imshow(picture[..., ::-1])
            if column == 0:
                panel.set_ylabel(name)
            if column >= len(found):
                panel.set_title("nothing more" if column else "nothing found", fontsize=9)
                panel.images[0].set_alpha(0.3)
                continue
            one = found[column]
            if one.map.max() > 0:
                panel.imshow(one.map, cmap="jet", alpha=0.45, vmin=0, vmax=1)
            note = "" if one.map.max() > 0 else ", raised by nothing in this layer"
            panel.set_title(f"{one.name} {one.score:.2f}{note}", fontsize=9)
            if one.box is not None:
                left, above, right, below = one.box
                frame = pyplot.Rectangle((left, above), right - left, below - above, fill=False, color="white", lw=1.5)
                panel.add_patch(frame)
    path = Path(path)
    aside = path.with_name(f".{path.stem}.new{path.suffix}")
    figure.savefig(aside, dpi=110)
    pyplot.close(figure)
    aside.replace(path)
