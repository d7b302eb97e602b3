"""A trained detector or classifier to look into: its weights loaded, pictures made ready, scores as a function."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
from mmdet.utils import get_test_pipeline_cfg
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import MODELS, DefaultScope
from numpy.typing import NDArray
from torch import Tensor, nn

from sa_mmdet.checkpoints import read, tensors_of

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels of the picture


def sheet_names(pictures: Sequence[str | Path]) -> list[str]:
    """A name for what is drawn of each picture: its own, with its folder's where that is not enough."""
    paths = [Path(picture) for picture in pictures]
    taken = Counter(path.stem for path in paths)
    names = [path.stem if taken[path.stem] == 1 else f"{path.resolve().parent.name}_{path.stem}" for path in paths]
    again = Counter(names)
    return [name if again[name] == 1 else f"{number}_{name}" for number, name in enumerate(names)]


class Network:
    """A model in evaluation mode, with its own pipeline.

    Args:
        config: The model's config.
        checkpoint: Its weights.
        device: A device of PyTorch.

    Raises:
        FileNotFoundError: There is no such checkpoint.
        ValueError: The weights do not fit the config.
    """

    def __init__(self, config: str | Path, checkpoint: str | Path, device: str = "cpu"):
        cfg = Config.fromfile(config)
        self.scope = cfg.get("default_scope", "mmdet")
        loaded = read(checkpoint)
        with self.in_scope():
            self.model: Any = MODELS.build({**cfg.model, "_scope_": self.scope})
            steps = get_test_pipeline_cfg(cfg)
            self.pipeline = Compose([step for step in steps if not step["type"].endswith("LoadAnnotations")])
        try:
            self.model.load_state_dict(tensors_of(loaded, checkpoint))
        except RuntimeError as error:
            raise ValueError(f"{checkpoint}: does not fit {config}: {' '.join(str(error).split())[:300]}") from error
        self.model.to(device).eval()
        self.classifies = hasattr(self.model, "head")
        self.classes = _classes(cfg, loaded)

    def in_scope(self) -> Any:
        """The scope in which the config names its layers."""
        return DefaultScope.overwrite_default_scope(self.scope)

    def name(self, label: int) -> str:
        """Of a class."""
        return self.classes[label] if label < len(self.classes) else str(label)

    def layer(self, name: str) -> nn.Module:
        """By its dotted name.

        Raises:
            ValueError: There is no such layer.
        """
        layers = dict(self.model.named_modules())
        if name not in layers:
            near = [other for other in layers if other.startswith(name.rpartition(".")[0])][:8]
            raise ValueError(f"there is no layer {name!r}; there are {', '.join(near)}")
        return layers[name]

    def read(self, picture: str | Path) -> tuple[NDArray[np.uint8], Any, Tensor]:
        """The picture as it is shown, H x W x 3 in OpenCV's order, its data sample, and the model's input.

        A classifier's pipeline crops: shown is what it leaves.

        Raises:
            ValueError: The file is no picture.
        """
        try:
            shown = mmcv.imread(str(picture))
            if shown is None:
                raise ValueError("OpenCV cannot read it")
            with self.in_scope():
                data = self.pipeline(dict(img_path=str(picture), img_id=0))
        except Exception as error:  # whatever a broken file makes of the decoders
            raise ValueError(f"{picture}: no picture: {' '.join(str(error).split())}") from error
        if self.classifies:
            shown = np.ascontiguousarray(data["inputs"].permute(1, 2, 0).numpy())
        sample = data["data_samples"]
        batch = self.model.data_preprocessor(dict(inputs=[data["inputs"]], data_samples=[sample]), False)
        return shown, sample, batch["inputs"]


class Scores(nn.Module):
    """An image to the scores of what is found in it, 1 x S; keeps what they are of.

    Args:
        network: The model.
        sample: The image's data sample.
        logits: Whether a classifier gives what its softmax takes: a sure class's probability has no gradient left.
    """

    def __init__(self, network: Network, sample: Any, logits: bool = False):
        super().__init__()
        self.network, self.sample, self.logits = network, sample, logits
        self.labels: list[int] = []
        self.boxes: list[Box] = []

    def forward(self, image: Tensor) -> Tensor:
        model = self.network.model
        if self.network.classifies:
            logits = model.head(model.extract_feat(image))
            self.labels = list(range(logits.shape[1]))
            return logits if self.logits else logits.softmax(1)
        [result] = model.predict(image, [self.sample], rescale=True)
        instances = result.pred_instances
        self.labels = instances.labels.tolist()
        self.boxes = [tuple(box) for box in instances.bboxes.tolist()]
        return instances.scores[None]


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
