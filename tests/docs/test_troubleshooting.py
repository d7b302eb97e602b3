"""Every error that the page on troubleshooting quotes is provoked, and says what is quoted."""

import contextlib
import io
import itertools
import json
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from documents import blocks
from mim.utils import get_content_from_url
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from mmengine.runner import Runner
from mmengine.runner.checkpoint import load_state_dict
from places import MMDETECTION, REPOSITORY
from shapes_dataset import shapes_dataset
from toy_training import Toy

from sa_mmdet import compat
from sa_mmdet.engine.check_dataset import check_dataset

PAGE = REPOSITORY / "docs" / "troubleshooting.md"
_numbers = itertools.count()
QUOTED = [block.text.strip() for block in blocks(PAGE) if block.language == "text"]
QUOTED.remove("Expected configs:")  # test_download_offers_the_weights_that_exist_and_refuses_others
# The whole text of an error, given an empty folder, a data set and a means to change what is installed.
Provocation = Callable[[Path, Path, pytest.MonkeyPatch], str]


def message(action: Callable[..., Any], *arguments: Any, **options: Any) -> str:
    with pytest.raises(Exception) as error:  # noqa: PT011  (which error it is, the page says)
        action(*arguments, **options)
    kind = type(error.value)
    module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    return f"{module}{kind.__name__}: {error.value}"


def dataset(shapes: Path, **options: Any) -> Any:
    return shapes_dataset(shapes, "train", **dict(filter_cfg=dict(filter_empty_gt=True)) | options)


def backbone(**options: Any) -> Any:
    return MODELS.build(dict(type="SAResNet", **options))


def mim_train(folder: Path, shapes: Path, change: pytest.MonkeyPatch) -> str:
    (folder / "wrong.py").write_text("model = dict(type='NoSuchDetector')\n")
    command = [sys.executable, "-m", "mim", "train", MMDETECTION, "wrong.py"]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    first, second = result.stderr.split("Traceback (most recent call last):\n")[1:]
    assert first.strip().splitlines()[-1].startswith(("KeyError: ", "AttributeError: "))  # the cause
    return second


def not_registered(folder: Path, shapes: Path, change: pytest.MonkeyPatch) -> str:
    change.delitem(MODELS.module_dict, "SAResNet")
    return message(backbone, depth=50)


def not_installed(folder: Path, shapes: Path, change: pytest.MonkeyPatch) -> str:
    (folder / "config.py").write_text('custom_imports = dict(imports=["sa_mmdet"])\n')
    change.setitem(sys.modules, "sa_mmdet", None)
    return message(Config.fromfile, folder / "config.py")


def training(folder: Path, *datasets: Any) -> str:
    data = dict(type="ConcatDataset", datasets=list(datasets))
    loader = dict(batch_size=1, num_workers=0, sampler=dict(type="DefaultSampler"), dataset=data)
    options: dict[str, Any] = dict(train_cfg=dict(by_epoch=True, max_epochs=1), default_scope="mmdet")
    optim_wrapper = dict(optimizer=dict(type="SGD", lr=0.1))
    name = f"troubles{next(_numbers)}"
    runner = Runner(
        Toy(), str(folder), loader, optim_wrapper=optim_wrapper, experiment_name=name, log_level="ERROR", **options
    )
    return message(runner.train)


def no_coco(folder: Path, shapes: Path, change: pytest.MonkeyPatch) -> str:
    change.chdir(folder)
    cfg = Config.fromfile(REPOSITORY / "configs" / "retinanet" / "retinanet_sa-r50_fpn_1x_coco.py")
    return training(folder, cfg.train_dataloader.dataset)


def shapes_config(shapes: Path, *classes: str) -> dict[str, Any]:
    options = dict(data_root=str(shapes), data_prefix=dict(img="images/"), pipeline=[])
    file = "annotations/instances_train.json"
    return dict(type="CocoDataset", ann_file=file, metainfo=dict(classes=classes), **options)


def no_images(folder: Path, shapes: Path, change: pytest.MonkeyPatch) -> str:
    return message(check_dataset, dataset(shapes, data_prefix=dict(img="photographs/")))


def no_class(folder: Path, shapes: Path, change: pytest.MonkeyPatch) -> str:
    return training(folder, shapes_config(shapes, "circle", "triangel"))


def no_classes(folder: Path, shapes: Path, change: pytest.MonkeyPatch) -> str:
    return training(folder, shapes_config(shapes, "cat", "dog"))


def other_labels(folder: Path, shapes: Path, change: pytest.MonkeyPatch) -> str:
    content = json.loads((shapes / "annotations" / "instances_train.json").read_text())
    content["categories"].reverse()
    (folder / "other.json").write_text(json.dumps(content))
    whole = shapes_config(shapes, "circle", "triangle", "square")
    return training(folder, whole, dict(whole, ann_file=str(folder / "other.json")))


def without_network(folder: Path, change: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        change.setenv(name, "http://127.0.0.1:9")  # the port of "discard", where nothing listens
    change.setattr(urllib.request, "_opener", None)  # which keeps the proxies of its first use
    change.setenv("TORCH_HOME", str(folder))


def no_network(folder: Path, shapes: Path, change: pytest.MonkeyPatch) -> str:
    without_network(folder, change)
    start = dict(type="ResNetPretrained", checkpoint="torchvision://resnet50")
    return message(backbone(depth=50, init_cfg=start).init_weights)


def other_classes(folder: Path, shapes: Path, change: pytest.MonkeyPatch) -> str:
    def detector(classes: int) -> Any:
        model = Config.fromfile(REPOSITORY / "configs/faster_rcnn/faster-rcnn_sa-r50_fpn_1x_coco.py").model
        model.backbone.update(depth=18, groups=16, init_cfg=None)
        model.neck.in_channels = [64, 128, 256, 512]
        model.roi_head.bbox_head.num_classes = classes
        return MODELS.build(model)

    with contextlib.redirect_stdout(io.StringIO()) as said:
        load_state_dict(detector(1), detector(3).state_dict())
    return said.getvalue()


def other_depth(folder: Path, shapes: Path, change: pytest.MonkeyPatch) -> str:
    torch.save(MODELS.build(dict(type="ResNet", depth=18)).state_dict(), folder / "plain.pth")
    start = dict(type="ResNetPretrained", checkpoint=str(folder / "plain.pth"))
    return message(backbone(depth=50, init_cfg=start).init_weights)


def other_groups(folder: Path, shapes: Path, change: pytest.MonkeyPatch) -> str:
    return message(backbone, depth=18, groups=64)


def refused_checkpoint(folder: Path, shapes: Path, change: pytest.MonkeyPatch) -> str:
    torch.save(dict(state_dict={}, message_hub=HistoryBuffer([1], [1])), folder / "epoch_1.pth")
    code = f"import torch; torch.load({str(folder / 'epoch_1.pth')!r})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if not result.returncode:
        pytest.skip("before 2.6, PyTorch loads anything")
    return result.stderr


def no_download(folder: Path, shapes: Path, change: pytest.MonkeyPatch) -> str:
    without_network(folder, change)
    return message(get_content_from_url, "https://example.org/weights.pth")


def no_operators(folder: Path, shapes: Path, change: pytest.MonkeyPatch) -> str:
    change.setitem(sys.modules, "mmcv._ext", None)
    return message(compat.check_stack)


PROVOCATIONS: dict[str, Provocation] = {
    "subprocess.CalledProcessError: ": mim_train,
    "KeyError: 'SAResNet": not_registered,
    "ImportError: Failed": not_installed,
    "FileNotFoundError: ": no_coco,
    "images are missing": no_images,
    "is not in": no_class,
    "are not in": no_classes,
    "since MMDetection": other_labels,
    "torchvision://": no_network,
    "size mismatch": other_classes,
    "weights of": other_depth,
    "groups=64": other_groups,
    "_pickle.UnpicklingError": refused_checkpoint,
    "TypeError: exceptions": no_download,
    "mmcv is installed": no_operators,
}


def provocation(quoted: str) -> Provocation:
    [found] = [function for start, function in PROVOCATIONS.items() if quoted.startswith(start)]
    return found


@pytest.mark.parametrize(
    "quoted",
    [
        pytest.param(quoted, marks=[pytest.mark.long] * (provocation(quoted) is mim_train), id=quoted[:25])
        for quoted in QUOTED
    ],
)
def test_the_error_is_as_quoted(quoted: str, tmp_path: Path, shapes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert quoted in provocation(quoted)(tmp_path, shapes, monkeypatch)


def test_every_provocation_is_quoted() -> None:
    assert all(any(quoted.startswith(start) for quoted in QUOTED) for start in PROVOCATIONS)
