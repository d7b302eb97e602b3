"""Reading the work directory that MMEngine writes for a training: config, losses, metrics, seed and versions."""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from mmengine.config import Config

from sa_mmdet.messages import one_line
from sa_mmdet.untrusted import literal_config

from .evaluators import coco_evaluator
from .networks import attention_name, backbone_name
from .settings import Differences, differences
from .tasks import CLASSIFIER, DETECTOR, TASK_BY_NAME, Kind

_FAMILIES = {
    "FasterRCNN": "Faster R-CNN",
    "ImageClassifier": "image classifier",
    "MaskRCNN": "Mask R-CNN",
    "RetinaNet": "RetinaNet",
}
_LARGEST = 1e12  # step or loss that a plot can show; a training that diverges has more, and its log lines do not count


@dataclass
class Run:
    """One training, from its work directory."""

    name: str
    folder: Path
    cfg: Config
    losses: list[tuple[int, float]]  # iteration and loss
    metrics: list[tuple[int, dict[str, float]]]  # epoch and metrics, 0 to 1, such as 'coco/bbox_mAP' or 'accuracy/top1'
    provenance: dict[str, str]  # such as 'seed', 'PyTorch' and 'GPU'
    notes: list[str] = field(default_factory=list)  # what a report must mention
    changes: Differences = field(default_factory=dict)  # settings in which an earlier start differs from the last
    distinction: str = ""  # what tells its variant from others with the same attention, such as 'lr=0.02'
    text: str = ""  # of its config, as recorded
    data_root: Path | None = None  # where the data set's folder is, if not where the config says

    @property
    def kind(self) -> Kind:
        """Whether it is a detector or a classifier."""
        return kind_of(self.cfg)

    @property
    def family(self) -> str:
        """The detector, as the paper calls it, such as 'Faster R-CNN', or 'image classifier'."""
        kind = str(self.cfg.model.type).rpartition(".")[2]
        return _FAMILIES.get(kind, kind)

    @property
    def backbone(self) -> str:
        """The backbone without its attention, as the paper calls it, such as 'ResNet-50'; others by their class."""
        return backbone_name(self.cfg.model.backbone)

    @property
    def attention(self) -> str:
        """The attention, as the paper calls it; 'none' for the plain network."""
        return attention_name(self.cfg.model.backbone)

    @property
    def variant(self) -> str:
        """Family, backbone and attention, such as 'RetinaNet ResNet-50 SA', and what tells it from others."""
        name = f"{self.family} {self.backbone} {self.attention}"
        return f"{name} ({self.distinction})" if self.distinction else name

    @property
    def seed(self) -> str | None:
        """The seed, as its log has it; None if it does not."""
        return self.provenance.get("seed")

    @property
    def annotations(self) -> Path:
        """The file with the annotations of a detector's test images."""
        found = coco_evaluator(self.cfg)
        return self.place(found[1]["ann_file"]) if found else Path()

    def place(self, path: str) -> Path:
        """Where a file or folder of the data set is now.

        Args:
            path: Where the config says that it is.

        Returns:
            The path, or what has the longest trailing part of it in :attr:`data_root`, if that is given.
        """
        if self.data_root is None:
            return Path(path)
        parts = PurePath(path).parts
        tails = (self.data_root.joinpath(*parts[i:]) for i in range(len(parts)) if ".." not in parts[i:])
        return next((tail for tail in tails if os.path.exists(tail) and tail != Path(path)), Path(path))

    @property
    def test_set(self) -> str:
        """The name of the test images: that of the annotations, or of a classifier's data set and its part."""
        if self.kind is DETECTOR:
            return self.annotations.name
        data = tested_data(self.cfg)
        return " ".join(str(data[key]) for key in ("type", "part") if data.get(key))

    @property
    def on_papers_data(self) -> bool:
        """Whether it was tested on the images of the paper's results, COCO val2017 or ImageNet's for validation.

        How many images there are does not show here: the results tell.
        """
        if self.kind is DETECTOR:
            return self.test_set == "instances_val2017.json" and not tested_set(self.cfg).get("indices")
        data = tested_data(self.cfg)
        whole = not data.get("indices") and PurePath(str(data.get("ann_file") or "val")).stem == "val"
        return self.test_set == "ImageNet val" and whole

    def results(self, task: str) -> Path | None:
        """The file with the results on the test images; None if the run did not keep it.

        Args:
            task: 'bbox', 'segm' or 'classification'.
        """
        paths = (self.folder / name for name in TASK_BY_NAME[task].files)
        return next((path for path in paths if path.is_file()), None)


def read_run(folder: str | Path) -> Run:
    """Read a work directory. The parts of a resumed training are joined.

    Args:
        folder: The work directory.

    Raises:
        ValueError: The folder is not the work directory of a detector or classifier, or the training was not evaluated
            yet.
    """
    folder = Path(folder)
    logs = sorted(folder.glob("*/vis_data/scalars.json"))
    # Not those of tests that wrote into the same folder.
    configs = [config for log in logs if (config := log.with_name("config.py")).is_file()]
    configs = configs or sorted(folder.glob("*/vis_data/config.py")) or sorted(folder.glob("*.py"))
    if not logs or not configs:
        raise ValueError(f"{folder}: is not the work directory of a training: it has no <time>/vis_data/scalars.json")
    cfg = _read_model_config(configs[-1])
    losses, metrics, broken = _read_logs(logs, kind_of(cfg))
    if not metrics:
        raise ValueError(f"{folder}: no epoch was finished and evaluated")
    notes = [f"{broken} broken lines of its log were skipped"] if broken else []
    changes = _changes(configs[:-1], cfg)
    name = "/".join(folder.parts[-2:]) if re.fullmatch(r"seed\d+", folder.name) else folder.name
    text = configs[-1].read_text(encoding="utf-8")
    measured = sorted(losses.items()), sorted(metrics.items())
    return Run(name, folder, cfg, *measured, _provenance(folder), notes, changes, text=text)


def read_recorded_config(path: Path) -> Config:
    """Read the config that MMEngine wrote into a work directory; code of another author is not run.

    Args:
        path: The file, such as ``<time>/vis_data/config.py``.

    Raises:
        ValueError: It cannot be read, or holds more than literals.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read: {one_line(error, 200)}") from error
    return literal_config(text, path)


def _read_model_config(path: Path) -> Config:
    cfg = read_recorded_config(path)
    model = cfg.get("model")
    backbone = model.get("backbone") if isinstance(model, dict) else None
    if not isinstance(backbone, dict) or not model.get("type") or not backbone.get("type"):
        raise ValueError(
            f"{path}: has no model.type and model.backbone.type, so it is no config of a detector or classifier"
        )
    return cfg


def kind_of(cfg: Config) -> Kind:
    """Whether a config is a classifier's, by the name that MMPretrain gives to all of them.

    Args:
        cfg: A config with a model.
    """
    return CLASSIFIER if str(cfg.model.get("type")).rpartition(".")[2].endswith("Classifier") else DETECTOR


def tested_set(cfg: Config) -> dict[str, Any]:
    """The config of the data set that a config tests on, which others may wrap; empty if there is none.

    Args:
        cfg: The config.
    """
    data = cfg.get("test_dataloader")
    while isinstance(data, dict) and isinstance(data.get("dataset"), dict):
        data = data["dataset"]
    return data if isinstance(data, dict) else {}


def tested_data(cfg: Config) -> dict[str, Any]:
    """On which images a classifier is tested, by its config.

    Args:
        cfg: The config.

    Returns:
        The data set's 'type', its 'part', such as 'val', and where they are given its 'data_root', its 'ann_file', and
        the 'indices' of its images.
    """
    data = tested_set(cfg)
    if not data:
        return {}
    prefix = data.get("data_prefix")
    prefix = prefix.get("img_path") if isinstance(prefix, dict) else prefix
    places = (data.get("split"), prefix, PurePath(str(data.get("ann_file") or "")).stem)
    part = next((PurePath(str(place)).name for place in places if place), "")
    kind = str(data.get("type")).rpartition(".")[2]
    return dict(type=kind, part=part, **{key: data[key] for key in ("data_root", "ann_file", "indices") if key in data})


def _changes(earlier: Sequence[Path], last: Config) -> Differences:
    """The settings of earlier starts of a training that its last start changed."""
    found: Differences = {}
    for path in earlier:
        try:
            found |= differences(read_recorded_config(path), last)
        except ValueError:  # a start that was stopped at once may have left a part of a config
            continue
    return found


def _read_logs(logs: Sequence[Path], kind: Kind) -> tuple[dict[int, float], dict[int, dict[str, float]], int]:
    """Read the logs of all starts; a resumed run replaces the steps that it repeats.

    Returns:
        The loss of each iteration, the metrics of each epoch, and the number of lines that cannot be read.
    """
    losses: dict[int, float] = {}
    metrics: dict[int, dict[str, float]] = {}
    broken = 0
    for line in (line for log in logs for line in log.read_text(errors="replace").splitlines()):
        try:
            entry = json.loads(line)
            step = int(entry["step"])
            found = {
                key: _share(float(value) / kind.whole) for key, value in entry.items() if key.startswith(kind.prefix)
            }
            loss = {step: float(entry["loss"])} if "loss" in entry else {}
            if abs(step) > _LARGEST or any(abs(one) > _LARGEST for one in loss.values()):
                raise ValueError
            if any(abs(value) > 1 for value in found.values()):
                raise ValueError
            losses |= loss
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            broken += 1
            continue
        if found:
            metrics[step] = found
    return losses, metrics, broken


def _share(value: float) -> float:
    """A metric; of 3 images that are all right float32 makes 100.00001 %."""
    return 1.0 if 1 < value < 1 + 1e-6 else value


def _provenance(folder: Path) -> dict[str, str]:
    """Read seed, versions and machine from the beginning of the newest log."""
    found = {}
    logs = sorted(folder.glob("*/*.log"))
    head = logs[-1].read_text(errors="replace")[:20_000] if logs else ""
    for name, pattern in (
        ("seed", r"^ +seed: (\S+)"),
        ("Python", r"^ +Python: (\S+)"),
        ("PyTorch", r"^ +PyTorch: (\S+)"),
        ("MMEngine", r"^ +MMEngine: (\S+)"),
        ("GPU", r"^ +GPU 0[\d,]*: (.+)"),
        ("started", r"^(\d{4}/\d\d/\d\d \d\d:\d\d:\d\d)"),
    ):
        if match := re.search(pattern, head, re.MULTILINE):
            found[name] = match.group(1)
    return found
