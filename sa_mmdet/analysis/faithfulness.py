"""Whether an activation map shows what a network's score depends on: the areas under deletion and insertion curves."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from .activation_maps import Found, Look, extent
from .network import Network, Scores
from .objects import Seen, score_of

RANDOM_MAPS = 3  # whose curves are averaged
_BLUR = 5 / 224  # the blur's standard deviation, as a share of the square root of the image's area

Curve = list[float]
Order = NDArray[np.intp]


@dataclass
class Faithfulness:
    """How an object's score follows the pixels that its map shows, and those that random maps show.

    Each curve has S + 1 scores, 0 to 1.
    """

    shares: Curve  # how many of the pixels are changed, for each score of the curves: from 0 to 1
    deletion: Curve
    insertion: Curve
    random_deletion: Curve  # the mean over several random maps
    random_insertion: Curve

    @property
    def areas(self) -> tuple[float, float, float, float]:
        """The areas below the curves: of deletion, random deletion, insertion and random insertion."""
        curves = (self.deletion, self.random_deletion, self.insertion, self.random_insertion)
        deletion, random_deletion, insertion, random_insertion = (_area(self.shares, curve) for curve in curves)
        return deletion, random_deletion, insertion, random_insertion


def _area(shares: Curve, curve: Curve) -> float:
    """The area below a curve, by the trapezoidal rule."""
    return float(np.sum(np.diff(shares) * (np.array(curve[1:]) + curve[:-1]) / 2))


class Perturbation:
    """An image whose pixels are deleted or inserted in the order of a map.

    Deletion removes the pixels with the highest values first: they become zero in the network's input, which is the
    mean colour that its config subtracts. If the map shows what the score depends on, the score falls soon, and the
    area below its curve is small. Insertion begins with a blurred image and puts the pixels back, those with the
    highest values first: here a large area is good. Pixels of equal values, such as all at which a map is 0, come in
    the order of a random map. The shares of changed pixels are (k / S)^2, since small objects are gone soon.

    A random map has uniform noise at each position of the layer that it is compared with, resized as the layer's maps
    are. It says what the areas are worth: a map that shows nothing has the areas of random maps.

    Source: RISE, BMVC 2018 (arXiv 1806.07421), its metrics deletion and insertion. Its blur, 5 pixels in images of
    224 x 224, is scaled with the image here; and where objects are detected it is as wide as the largest of them, which
    would be seen otherwise.

    Args:
        network: The network.
        look: The image.
        steps: S, in how many parts the pixels are changed.
        seed: Of the random maps.
    """

    def __init__(self, network: Network, look: Look, steps: int = 20, seed: int = 0):
        self.network, self.look, self.seed = network, look, seed
        height, width = look.size
        self.shares = [(step / steps) ** 2 for step in range(steps + 1)]
        self.blank = look.inputs.clone()
        self.blank[:, :, :height, :width] = 0

    def judge(self, seen: Sequence[Seen], found: Sequence[Found]) -> list[Faithfulness]:
        """Compute the curves of several objects.

        Args:
            seen: The objects.
            found: Their maps.
        """
        self.blurred = self._blurred(max((extent(self.look, one.box) for one in seen), default=0))
        random = {stride: self._random_curves(seen, stride) for stride in {one.layer.stride for one in found}}
        judged = []
        for number, (one, shown) in enumerate(zip(seen, found, strict=True)):
            stride = shown.layer.stride
            values = _resized(shown.map, self.look.size)
            [deletion], [insertion] = self._curves([one], _descending(values, self._random_map(stride, 0)))
            judged.append(
                Faithfulness(self.shares, deletion, insertion, *(curves[number] for curves in random[stride]))
            )
        return judged

    def _blurred(self, size: float) -> Tensor:
        """The image, so blurred that objects of a size in pixels of the input cannot be seen."""
        height, width = self.look.size
        pixels = self.look.inputs[0, :, :height, :width].permute(1, 2, 0).float().cpu().numpy()
        soft = cv2.GaussianBlur(np.ascontiguousarray(pixels), (0, 0), max(size, _BLUR * (height * width) ** 0.5))
        blurred = self.look.inputs.clone()
        blurred[0, :, :height, :width] = torch.from_numpy(soft).permute(2, 0, 1).to(blurred)
        return blurred

    def _random_curves(self, seen: Sequence[Seen], stride: float) -> tuple[list[Curve], list[Curve]]:
        """The mean curves of deletion and insertion over random maps, of each object."""
        orders = [_descending(self._random_map(stride, number)) for number in range(RANDOM_MAPS)]
        curves = np.mean([self._curves(seen, order) for order in orders], 0)  # 2 x objects x steps
        return curves[0].tolist(), curves[1].tolist()

    def _random_map(self, stride: float, number: int) -> NDArray[np.float32]:
        height, width = self.look.size
        cells = max(1, round(height / stride)), max(1, round(width / stride))
        noise = np.random.default_rng((self.seed, number)).random(cells, np.float32)
        return _resized(noise, self.look.size)

    def _curves(self, seen: Sequence[Seen], order: Order) -> tuple[list[Curve], list[Curve]]:
        """The curves of deletion and insertion of each object, when pixels change in one order."""
        image = self.look.inputs
        return self._scores(seen, image, self.blank, order), self._scores(seen, self.blurred, image, order)

    def _scores(self, seen: Sequence[Seen], start: Tensor, end: Tensor, order: Order) -> list[Curve]:
        scores = Scores(self.network, self.look.sample)
        curves: list[Curve] = [[] for _ in seen]
        with torch.no_grad(), self.network.in_scope():
            for image in self._between(start, end, order):
                values = scores(image)
                for one, curve in zip(seen, curves, strict=True):
                    curve.append(score_of(values, scores, one.label, one.box))
        return curves

    def _between(self, start: Tensor, end: Tensor, order: Order) -> Iterator[Tensor]:
        """The first image, and those in which part after part of the pixels comes from the other one."""
        image = start.clone()
        yield image
        ends = [round(share * len(order)) for share in self.shares]
        for begin, stop in itertools.pairwise(ends):
            places = np.unravel_index(order[begin:stop], self.look.size)
            rows, columns = (torch.from_numpy(which).to(image.device) for which in places)
            image[:, :, rows, columns] = end[:, :, rows, columns]
            yield image


def _resized(values: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    maps = torch.from_numpy(values)[None, None]
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)[0, 0].numpy()


def _descending(values: NDArray[np.float32], tie_breaker: NDArray[np.float32] | None = None) -> Order:
    """The flat indices of pixels, those with high values first, and among equal ones those with high tie breakers."""
    keys = [-values.ravel()] if tie_breaker is None else [-tie_breaker.ravel(), -values.ravel()]
    return np.lexsort(keys)
