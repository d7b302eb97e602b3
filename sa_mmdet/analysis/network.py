"""A trained detector or classifier for analysis: with its preprocessing, and its scores as a function of the input."""

import difflib
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
from sa_mmdet.messages import one_line, printable

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels of the image


def output_names(images: Sequence[str | Path]) -> list[str]:
    """Choose a unique name for the output of each image: the file's name, with its folder where names are equal.

    Args:
        images: The image files.
    """
    paths = [Path(image) for image in images]
    taken = Counter(path.stem for path in paths)
    names = [path.stem if taken[path.stem] == 1 else f"{path.resolve().parent.name}_{path.stem}" for path in paths]
    again = Counter(names)
    return [name if again[name] == 1 else f"{number}_{name}" for number, name in enumerate(names)]


class Network:
    """A model in evaluation mode, with its own test pipeline.

    Args:
        config: The model's config.
        checkpoint: Its weights.
        device: A device of PyTorch.

    Raises:
        FileNotFoundError: The checkpoint does not exist.
        ValueError: The weights do not fit the config.
    """

    def __init__(self, config: str | Path, checkpoint: str | Path, device: str = "cpu"):
        cfg = Config.fromfile(config)
        self.scope = cfg.get("default_scope", "mmdet")
        loaded = read(checkpoint)
        with self.in_scope():
            preprocessor = cfg.get("data_preprocessor")  # MMPretrain's configs have it beside the model, as runners do
            beside = {} if preprocessor is None else dict(data_preprocessor=preprocessor)
            self.model: Any = MODELS.build({**beside, **cfg.model, "_scope_": self.scope})
            steps = get_test_pipeline_cfg(cfg)
            self.pipeline = Compose([step for step in steps if not step["type"].endswith("LoadAnnotations")])
        try:
            self.model.load_state_dict(tensors_of(loaded, checkpoint))
        except RuntimeError as error:
            raise ValueError(f"{checkpoint}: does not fit {config}: {one_line(error, 300)}") from error
        self.model.to(device).eval()
        self.classifies = hasattr(self.model, "head")
        self.classes = _classes(cfg, loaded)

    def in_scope(self) -> Any:
        """A context with the default scope in which the config names its layers."""
        return DefaultScope.overwrite_default_scope(self.scope)

    def name(self, label: int) -> str:
        """The name of a class."""
        return self.classes[label] if label < len(self.classes) else str(label)

    def layer(self, name: str) -> nn.Module:
        """Find a layer by its dotted name, such as 'backbone.layer3.5'.

        Raises:
            ValueError: The layer does not exist.
        """
        layers = dict(self.model.named_modules())
        if name not in layers:
            similar = difflib.get_close_matches(name, layers, n=8, cutoff=0)
            raise ValueError(f"there is no layer {name!r}; similar names are {', '.join(similar)}")
        return layers[name]

    def read(self, image: str | Path) -> tuple[NDArray[np.uint8], Any, Tensor]:
        """Read an image and prepare it with the model's own test pipeline.

        Args:
            image: The image file.

        Returns:
            The image to show, H x W x 3 with channels in OpenCV's order (for a classifier, the part that its pipeline
            crops); its data sample; and the model's input, 1 x 3 x H' x W'.

        Raises:
            ValueError: The file is not a readable image.
        """
        try:
            shown = mmcv.imread(str(image))
            if shown is None:
                raise ValueError("OpenCV cannot read it")
            with self.in_scope():
                data = self.pipeline(dict(img_path=str(image), img_id=0))
        except Exception as error:  # decoders may raise any exception on a broken file
            raise ValueError(f"{image}: is not a readable image: {one_line(error)}") from error
        if self.classifies:
            shown = np.ascontiguousarray(data["inputs"].permute(1, 2, 0).numpy())
        sample = data["data_samples"]
        batch = self.model.data_preprocessor(dict(inputs=[data["inputs"]], data_samples=[sample]), False)
        return shown, sample, batch["inputs"]


class Scores(nn.Module):
    """A network's S scores, 1 x S, as a function of its input. Keeps the classes and boxes of the last call.

    Args:
        network: The model.
        sample: The image's data sample.
        logits: Whether a classifier returns logits instead of probabilities, whose gradient vanishes near 1.
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
    """The names of the classes: those in the checkpoint, else those of the config's data set, else COCO's."""
    meta = loaded.get("meta") if isinstance(loaded, dict) else None
    recorded = meta.get("dataset_meta") if isinstance(meta, dict) else None
    dataset = cfg.get("test_dataloader", {}).get("dataset", {})
    for known in (recorded, dataset.get("metainfo")):
        classes = known.get("classes") if isinstance(known, dict) else None
        if isinstance(classes, list | tuple) and classes:
            return [printable(str(name)) for name in classes]
    from mmdet.datasets import CocoDataset

    return list(CocoDataset.METAINFO["classes"])
