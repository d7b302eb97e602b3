"""What MMEngine leaves of a training in its work directory: config, losses, metrics, seed and versions."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

from mmengine.config import Config

from sa_mmdet.messages import one_line
from sa_mmdet.untrusted import literal_config

_FAMILIES = {"FasterRCNN": "Faster R-CNN", "MaskRCNN": "Mask R-CNN", "RetinaNet": "RetinaNet"}
_ATTENTIONS = {
    "ShuffleAttention": "SA",
    "SqueezeExcitation": "SE",
    "EfficientChannelAttention": "ECA",
    "SpatialGroupEnhance": "SGE",
    "CBAM": "CBAM",
}


@dataclass
class Run:
    """One work directory."""

    name: str
    folder: Path
    cfg: Config
    losses: list[tuple[int, float]]  # iteration, loss
    metrics: list[tuple[int, dict[str, float]]]  # epoch, metrics such as coco/bbox_mAP
    provenance: dict[str, str]
    notes: list[str] = field(default_factory=list)

    @property
    def family(self) -> str:
        """The detector, as the paper calls it."""
        kind = str(self.cfg.model.type).rpartition(".")[2]
        return _FAMILIES.get(kind, kind)

    @property
    def backbone(self) -> str:
        """The backbone without its attention, as the paper calls it."""
        return f"ResNet-{self.cfg.model.backbone.get('depth', '?')}"

    @property
    def attention(self) -> str:
        """The attention, as the paper calls it; 'none' for the plain network."""
        backbone = self.cfg.model.backbone
        kind = str(backbone.type).rpartition(".")[2]
        if kind == "SAResNet":
            return "SA"
        layer = backbone.get("attention")
        if isinstance(layer, list | tuple):
            layer = next((one for one in layer if one), None)
        if kind == "AttentionResNet" and isinstance(layer, dict):
            name = str(layer.get("type"))
            return _ATTENTIONS.get(name, name)
        return "none" if kind in ("ResNet", "AttentionResNet") else kind

    @property
    def variant(self) -> str:
        """Detector, backbone and attention; runs of one variant differ in their seed only."""
        return f"{self.family} {self.backbone} {self.attention}"

    @property
    def annotations(self) -> Path:
        """The file of annotations of the test images."""
        evaluator = self.cfg.get("test_evaluator")
        first = evaluator[0] if isinstance(evaluator, list | tuple) and evaluator else evaluator
        name = first.get("ann_file") if isinstance(first, dict) else None
        return Path(name if isinstance(name, str) else "")

    @property
    def on_coco(self) -> bool:
        """Whether it was tested on COCO val2017, as the paper's results were."""
        return self.annotations.name == "instances_val2017.json"

    def results(self, task: str) -> Path | None:
        """The file of detections on the test images, None if it was not kept."""
        path = self.folder / f"results.{task}.json"
        return path if path.is_file() else None


def read_run(folder: str | Path) -> Run:
    """Read a work directory; of a run that was resumed, all parts.

    Args:
        folder: The work directory.

    Raises:
        ValueError: It is not a detector's work directory, or no epoch was finished and evaluated.
    """
    folder = Path(folder)
    logs = sorted(folder.glob("*/vis_data/scalars.json"))
    configs = sorted(folder.glob("*/vis_data/config.py")) or sorted(folder.glob("*.py"))
    if not logs or not configs:
        raise ValueError(f"{folder}: is not the work directory of a training: it has no <time>/vis_data/scalars.json")
    losses: dict[int, float] = {}
    found: dict[int, dict[str, float]] = {}
    broken = 0
    for log in logs:  # one per start; a resumed run replaces what it did again
        for line in log.read_text(errors="replace").splitlines():
            try:
                entry = json.loads(line)
                step = int(entry["step"])
                if "loss" in entry:
                    losses[step] = float(entry["loss"])
                metrics = {key: float(value) for key, value in entry.items() if key.startswith("coco/")}
            except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
                broken += 1
                continue
            if metrics:
                found[step] = metrics
    if not found:
        raise ValueError(f"{folder}: no epoch was finished and evaluated")
    try:
        text = configs[-1].read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ValueError(f"{configs[-1]}: cannot be read: {one_line(error, 200)}") from error
    cfg = literal_config(text, configs[-1])  # MMEngine wrote it; what somebody else wrote is not run
    model = cfg.get("model")
    backbone = model.get("backbone") if isinstance(model, dict) else None
    if not isinstance(backbone, dict) or not model.get("type") or not backbone.get("type"):
        raise ValueError(f"{configs[-1]}: has no model.type and model.backbone.type, so it is not a detector's config")
    notes = [f"{broken} broken lines of its log were skipped"] if broken else []
    name = "/".join(folder.parts[-2:]) if re.fullmatch(r"seed\d+", folder.name) else folder.name
    return Run(name, folder, cfg, sorted(losses.items()), sorted(found.items()), _provenance(folder), notes)


def _provenance(folder: Path) -> dict[str, str]:
    """Seed, versions and machine, from the beginning of the newest log."""
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
