"""What MMEngine records of a config is read as it was, and may be built."""

from pathlib import Path

import mmdet
import pytest
from config_files import DETECTORS
from mmengine.config import Config

from sa_mmdet.untrusted import RefusedFileError, check_buildable, literal_config

ZOO = Path(mmdet.__file__).parent / ".mim" / "configs"
# Keys that are not names, layers of mmcv's operators, words that only look like types, lazy configs.
NAMES = [
    "mask2former_vis/mask2former_swin-l-p4-w12-384-in21k_8xb2-8e_youtubevis2021.py",
    "cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py",
    "fpg/retinanet_r50_fpg_crop640_50e_coco.py",
    "dino/dino-4scale_r50_8xb2-12e_coco.py",
]
LAZY = Path(mmdet.__file__).parent / "configs" / "retinanet" / "retinanet_r50_fpn_1x_coco.py"


@pytest.mark.parametrize("path", [*(ZOO / name for name in NAMES), LAZY, *DETECTORS[:3]], ids=lambda path: path.stem)
def test_a_dumped_config_is_what_it_was(path: Path) -> None:
    if not path.is_file():
        pytest.skip("this MMDetection does not have the config")
    text = Config.fromfile(path, import_custom_modules=False).pretty_text
    read = literal_config(text, path)
    assert read.to_dict() == Config.fromstring(text, ".py").to_dict()
    check_buildable(read, path)


def test_values_that_a_program_cannot_read_back_are_read() -> None:
    text = "a = inf\nb = [-inf, -1, +2.5, 1e400, 'x' 'y']\nc = {1: {2, 3}, 'd e': ()}\nf = dict({'g h': None})\n"
    assert literal_config(text, "x").to_dict() == dict(
        a=float("inf"), b=[-float("inf"), -1, 2.5, float("inf"), "xy"], c={1: {2, 3}, "d e": ()}, f={"g h": None}
    )


@pytest.mark.parametrize(
    "text", ["a", "a =", "a = (1", "a = 1 2", "a.b = 1", "a = b", "del a", "a = 1 + 2", "a += 1", "\x00"]
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(RefusedFileError, match="x: its config"):
        literal_config(text, "x")
