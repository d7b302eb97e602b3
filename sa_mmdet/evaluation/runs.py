"""Reading the work directory that MMEngine writes for a training: config, losses, metrics, seed and versions."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mmengine.config import Config

from sa_mmdet.backbones import attention_label
from sa_mmdet.messages import one_line
from sa_mmdet.untrusted import literal_config

from .evaluators import coco_evaluator

_FAMILIES = {"FasterRCNN": "Faster R-CNN", "MaskRCNN": "Mask R-CNN", "RetinaNet": "RetinaNet"}
_RESNETS = ("ResNet", "AttentionResNet", "SAResNet")


@dataclass
class Run:
    """One training, from its work directory."""

    name: str
    folder: Path
    cfg: Config
    losses: list[tuple[int, float]]  # iteration and loss
    metrics: list[tuple[int, dict[str, float]]]  # epoch and metrics, 0 to 1, such as 'coco/bbox_mAP'
    provenance: dict[str, str]  # such as 'seed', 'PyTorch' and 'GPU'
    notes: list[str] = field(default_factory=list)  # what a report must mention
    distinction: str = ""  # what tells it from runs that were trained in another way

    @property
    def family(self) -> str:
        """The detector, as the paper calls it, such as 'Faster R-CNN'."""
        kind = str(self.cfg.model.type).rpartition(".")[2]
        return _FAMILIES.get(kind, kind)

    @property
    def backbone(self) -> str:
        """The backbone without its attention, as the paper calls it, such as 'ResNet-50'; others by their class."""
        cfg = self.cfg.model.backbone
        kind = self._backbone_class
        return f"{'ResNet' if kind in _RESNETS else kind}{f'-{cfg.depth}' if 'depth' in cfg else ''}"

    @property
    def _backbone_class(self) -> str:
        cfg = self.cfg.model.backbone
        return str(cfg.get("module", cfg.type)).rpartition(".")[2]  # the class that attention was inserted into

    @property
    def attention(self) -> str:
        """The attention, as the paper calls it; 'none' for the plain network."""
        labels = attention_label(self.cfg.model.backbone).split("+")
        return "+".join(label for label in labels if label != self._backbone_class) or "none"

    @property
    def variant(self) -> str:
        """Detector, backbone and attention, such as 'RetinaNet ResNet-50 SA'; its runs differ only in the seed."""
        name = f"{self.family} {self.backbone} {self.attention}"
        return f"{name} ({self.distinction})" if self.distinction else name

    @property
    def annotations(self) -> Path:
        """The file with the annotations of the test images."""
        found = coco_evaluator(self.cfg)
        return Path(found[1]["ann_file"] if found else "")

    @property
    def on_coco(self) -> bool:
        """Whether it was tested on COCO val2017, like the paper's results."""
        return self.annotations.name == "instances_val2017.json"

    def results(self, task: str) -> Path | None:
        """The file with the detections on the test images; None if the run did not keep it.

        Args:
            task: 'bbox' or 'segm'.
        """
        path = self.folder / f"results.{task}.json"
        return path if path.is_file() else None


def read_run(folder: str | Path) -> Run:
    """Read a work directory. The parts of a resumed training are joined.

    Args:
        folder: The work directory.

    Raises:
        ValueError: The folder is not a detector's work directory, or the training was not evaluated yet.
    """
    folder = Path(folder)
    logs = sorted(folder.glob("*/vis_data/scalars.json"))
    configs = sorted(folder.glob("*/vis_data/config.py")) or sorted(folder.glob("*.py"))
    if not logs or not configs:
        raise ValueError(f"{folder}: is not the work directory of a training: it has no <time>/vis_data/scalars.json")
    losses, metrics, broken = _read_logs(logs)
    if not metrics:
        raise ValueError(f"{folder}: no epoch was finished and evaluated")
    cfg = _read_detector_config(configs[-1])
    notes = [f"{broken} broken lines of its log were skipped"] if broken else []
    name = "/".join(folder.parts[-2:]) if re.fullmatch(r"seed\d+", folder.name) else folder.name
    return Run(name, folder, cfg, sorted(losses.items()), sorted(metrics.items()), _provenance(folder), notes)


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


def _read_detector_config(path: Path) -> Config:
    cfg = read_recorded_config(path)
    model = cfg.get("model")
    backbone = model.get("backbone") if isinstance(model, dict) else None
    if not isinstance(backbone, dict) or not model.get("type") or not backbone.get("type"):
        raise ValueError(f"{path}: has no model.type and model.backbone.type, so it is not a detector's config")
    return cfg


def _read_logs(logs: Sequence[Path]) -> tuple[dict[int, float], dict[int, dict[str, float]], int]:
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
            if "loss" in entry:
                losses[step] = float(entry["loss"])
            found = {key: float(value) for key, value in entry.items() if key.startswith("coco/")}
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            broken += 1
            continue
        if found:
            metrics[step] = found
    return losses, metrics, broken


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
