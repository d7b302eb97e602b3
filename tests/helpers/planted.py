"""Networks whose scores are known functions of known pixels; configs import this module by its name."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmengine.model import BaseDataPreprocessor
from mmengine.registry import MODELS
from mmengine.structures import InstanceData
from torch import Tensor, nn

from sa_mmdet.attention import ShuffleAttention

CLASSES = ("cell", "star")


@MODELS.register_module()
class UnitPreprocessor(BaseDataPreprocessor):
    """Pixels from 0 to 1, with zero as the mean colour."""

    def forward(self, data: dict, training: bool = False) -> dict:
        inputs = torch.stack([image.float() / 255 for image in data["inputs"]])
        return dict(inputs=inputs, data_samples=data["data_samples"])


@MODELS.register_module()
class SwappedPreprocessor(UnitPreprocessor):
    """The same with red and blue swapped."""

    def forward(self, data: dict, training: bool = False) -> dict:
        found = super().forward(data, training)
        return dict(found, inputs=found["inputs"].flip(1))


class Pyramid(nn.Module):
    """The mean brightness of 4 x 4, 8 x 8, 16 x 16 and 32 x 32 pixels."""

    def __init__(self, channel: int | None) -> None:
        super().__init__()
        if channel is not None:
            self.add_module("sa", ThroughAttention(channel))
        grey = nn.Conv2d(3, 1, 1, bias=False)
        nn.init.constant_(grey.weight, 1 / 3)
        for number, size in enumerate((4, 2, 2, 2), 1):
            first = grey if number == 1 else nn.Identity()
            self.add_module(f"layer{number}", nn.Sequential(first, nn.AvgPool2d(size)))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        found = []
        for stage in self.children():
            x = stage(x)
            found.append(x)
        return tuple(found[-4:])


class ThroughAttention(nn.Module):
    """Three equal channels: the mean of the image's, through one channel of shuffle attention, which is times 0.73."""

    def __init__(self, channel: int) -> None:
        super().__init__()
        self.channel = channel
        self.sa = ShuffleAttention(16, groups=4)

    def forward(self, x: Tensor) -> Tensor:
        wide = x.new_zeros(len(x), 16, *x.shape[2:])
        wide[:, self.channel] = x.mean(1)
        return self.sa(wide).sum(1, keepdim=True).expand(-1, 3, -1, -1)


@MODELS.register_module()
class PlantedDetector(nn.Module):
    """Detects objects at given places: each score is a factor times the mean brightness in the box, over all levels.

    With a negative factor it is 1 plus that. Scores up to 0.05 are left out.

    Args:
        objects: For each the left, top, right and bottom edge of the box in pixels of the input, multiples of 32 for
            the score to be exact, the class and the factor.
        constant: Likewise, with the score itself in the place of the factor.
        channel: If given, the brightness comes through this one of 16 channels of shuffle attention with 4 groups.
    """

    def __init__(
        self, objects: list, constant: list | None = None, channel: int | None = None, data_preprocessor: Any = None
    ):
        super().__init__()
        self.objects, self.constant = objects, constant or []
        self.backbone = Pyramid(channel)
        self.unused = nn.Conv2d(3, 3, 1)
        self.data_preprocessor = UnitPreprocessor()

    def predict(self, image: Tensor, samples: list, rescale: bool = True) -> list:
        levels = self.backbone(image)
        self.unused(image)
        scores = []
        for left, top, right, bottom, _, factor in self.objects:
            inside = []
            for level, stride in zip(levels, (4, 8, 16, 32), strict=True):
                edges = [round(edge / stride) for edge in (top, bottom, left, right)]
                inside.append(
                    level[0, :, edges[0] : max(edges[1], edges[0] + 1), edges[2] : max(edges[3], edges[2] + 1)]
                )
            scores.append(float(factor < 0) + factor * torch.stack([part.mean() for part in inside]).mean())
        scores += [image.new_tensor(one[5]) for one in self.constant]
        everything = [*self.objects, *self.constant]
        across, down = samples[0].scale_factor
        boxes = torch.tensor([one[:4] for one in everything]).float() / torch.tensor([across, down, across, down])
        labels = torch.tensor([one[4] for one in everything])
        found = InstanceData(bboxes=boxes, scores=torch.stack(scores), labels=labels)
        return [DetDataSample(pred_instances=found[found.scores > 0.05])]


@MODELS.register_module()
class PlantedClassifier(nn.Module):
    """Tells red images (class 0) from blue ones (class 1) by one channel of shuffle attention with 4 groups.

    Args:
        channel: The only one of 16 channels that carries something: red less blue.
        shuffle: Whether the attention shuffles.
    """

    def __init__(self, channel: int, shuffle: bool = True, data_preprocessor: Any = None):
        super().__init__()
        conv = nn.Conv2d(3, 16, 1, bias=False)
        self.backbone = nn.Sequential()
        self.backbone.add_module("conv", conv)
        self.backbone.add_module("sa", ShuffleAttention(16, groups=4, shuffle=shuffle))
        nn.init.zeros_(conv.weight)
        conv.weight.data[channel] = torch.tensor([-1.0, 0.0, 1.0]).reshape(3, 1, 1)  # OpenCV's order of channels
        self.head = Head()
        self.data_preprocessor = MODELS.build(data_preprocessor or dict(type="UnitPreprocessor"))

    def extract_feat(self, x: Tensor) -> Tensor:
        return self.backbone(x)


class Head(nn.Module):
    """The logits of classes 0 and 1 are half of the sum of the channels' means, and that with the other sign."""

    num_classes = 2

    def forward(self, x: Tensor) -> Tensor:
        total = x.mean((2, 3)).sum(1, keepdim=True)
        return torch.cat((total, -total), 1) / 2


PIPELINE = """
pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(256, 128), keep_ratio=True),
    dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
]
"""


def planted(
    folder: Path, name: str, kind: str = "PlantedDetector", more: str = "", **options: Any
) -> tuple[Path, Path]:
    """Write the config and the weights of a network.

    Args:
        folder: Where to write them.
        name: Of the files.
        kind: The class of the network.
        more: Further lines of the config.
        **options: Of the network.
    """
    config, weights = folder / f"{name}.py", folder / f"{name}.pth"
    data = f"dict(pipeline=pipeline, metainfo=dict(classes={CLASSES!r}))"
    lines = [
        'custom_imports = dict(imports=["planted"])',
        'default_scope = "mmdet"',
        f'model = dict(type="{kind}", **{options!r})',
        PIPELINE,
        f"test_dataloader = dict(dataset={data})",
        more,
    ]
    config.write_text("\n".join(lines))
    model: Any = dict(PlantedDetector=PlantedDetector, PlantedClassifier=PlantedClassifier)[kind](**options)
    torch.save(model.state_dict(), weights)
    return config, weights


def picture(path: Path, height: int, width: int, bright: list, value: int = 255) -> Path:
    """Write a black image with bright rectangles: left, top, right and bottom edge of each, in pixels."""
    pixels = np.zeros((height, width, 3), np.uint8)
    for left, top, right, bottom in bright:
        pixels[top:bottom, left:right] = value
    cv2.imwrite(str(path), pixels)
    return path
