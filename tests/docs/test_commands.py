"""The commands of the documents, word by word, on small data and with short trainings."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from documents import DOCUMENTS, Block, Reader, blocks
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import MODELS as ROOT_MODELS
from places import DEMO, MMDETECTION, REPOSITORY, Tool
from released import weights

from sa_mmdet.analysis import analyze

DOCS = REPOSITORY / "docs"
DEMO_PAGE = REPOSITORY / "configs" / "demo" / "README.md"
# torchvision's weights as PyTorch keeps them once they are downloaded.
RESNET50 = "torchvision://resnet50"


def put_resnet50(folder: Path) -> Path:
    """Write made-up weights with torchvision's names, which take the place of torchvision://resnet50."""
    path = folder / "resnet50.pth"
    torch.save(weights("none"), path)
    return path


def arguments_of_tools(path: Path) -> list[list[str]]:
    """The arguments with which a document starts tools, also where these need what is not here."""
    printing = r"""python() { case "$1" in tools/*) printf '%s\0' "$@"; echo;; esac; }"""
    setting = ("export ", "config=", "checkpoint=")
    commands = [c for block in blocks(path) if block.language == "bash" for c in block.commands]
    script = [printing, *(c for c in commands if c.startswith(("python tools/", *setting)))]
    said = subprocess.check_output(["bash", "-c", "\n".join(script)], cwd=REPOSITORY, text=True)
    return [line.rstrip("\0").split("\0") for line in said.splitlines()]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_tools_take_the_arguments(path: Path, parsing_tool: Tool) -> None:
    for name, *arguments in arguments_of_tools(path):
        status, _, errors = parsing_tool(Path(name).relative_to("tools"), *arguments)
        assert status == 0, errors


def python_blocks(path: Path) -> list[Block]:
    return [block for block in blocks(path) if block.language == "python"]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_configs_build(path: Path, tmp_path: Path) -> None:
    for block in python_blocks(path):
        (tmp_path / "config.py").write_text(block.text)
        if "_base_ = " in block.text:
            MODELS.build(Config.fromfile(tmp_path / "config.py").model)
        elif "backbone = " in block.text:
            MODELS.build(Config.fromfile(tmp_path / "config.py").backbone)


def test_the_guides_attention_is_all_that_is_needed() -> None:
    [block] = python_blocks(REPOSITORY / "CONTRIBUTING.md")
    before = set(ROOT_MODELS.module_dict)
    try:
        exec(block.text, {"__name__": "scalar_gate"})
        [name] = set(ROOT_MODELS.module_dict) - before
        model = MODELS.build(dict(type="AttentionResNet", depth=18, attention=dict(type=name)))
        found = analyze(dict(type="AttentionResNet", depth=18, attention=dict(type=name)), (64, 64))
    finally:
        for added in set(ROOT_MODELS.module_dict) - before:
            del ROOT_MODELS.module_dict[added]
    assert f"{len(model.layer1)}-{model.layer1[0].scalar.label}" == "2-Scalar"
    assert found.attention_parameters == 8  # one in each block


def test_the_readmes_config_starts_from_torchvisions_weights(tmp_path: Path) -> None:
    [block] = python_blocks(REPOSITORY / "README.md")
    (tmp_path / "my_config.py").write_text(block.text)
    cfg = Config.fromfile(tmp_path / "my_config.py").model.backbone
    assert cfg.type == "SAResNet"
    assert cfg.init_cfg.checkpoint == RESNET50
    cfg.init_cfg.checkpoint = str(put_resnet50(tmp_path))
    backbone = MODELS.build(cfg).double()
    backbone.init_weights()
    plain = MODELS.build(dict(type="ResNet", depth=50)).double()
    plain.load_state_dict({k: v for k, v in weights("none").items() if not k.startswith("fc.")})
    backbone.eval()
    plain.eval()
    image = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    for ours, theirs in zip(backbone(image), plain(image), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


# What keeps a training of a whole detector on a CPU short: few and small images and proposals, no processes that read.
_RESIZES = dict(train=2, val=1, test=1)  # positions in the pipelines
SMALL = [
    "model.train_cfg.rpn_proposal.max_per_img=50",
    "model.train_cfg.rcnn.sampler.num=16",
    "model.test_cfg.rpn.max_per_img=50",
    *(
        f"{split}_dataloader.{option}"
        for split, position in _RESIZES.items()
        for option in (
            f"dataset.pipeline.{position}.scale='(160,128)'",
            "dataset.indices=8",
            "num_workers=0",
            "persistent_workers=False",
        )
    ),
]


def follow_own_data(folder: Path, changes: dict[str, str]) -> str:
    """Follow docs/own_data.md from its first to its last block, with both of its configs."""
    reader = Reader(
        folder,
        {'type="SAResNet"),': f'type="SAResNet", init_cfg=dict(checkpoint="{put_resnet50(folder)}")),', **changes},
        {r"my_config\.py": f"--cfg-options {' '.join(SMALL)}"},
    )
    said = reader.follow(DOCS / "own_data.md")
    assert said.count("Epoch(val) [1]") == 2
    assert said.count("Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all") == 3
    [prediction] = (folder / "out" / "preds").iterdir()
    assert set(json.loads(prediction.read_text())) == {"labels", "scores", "bboxes"}
    assert len(list((folder / "out" / "vis").iterdir())) == 1
    return said


@pytest.mark.long
def test_own_data(tmp_path: Path) -> None:
    said = follow_own_data(tmp_path, {})
    assert "SAResNet: weights of a plain ResNet; the 16 new attention layers start" in said


@pytest.mark.long
def test_own_data_of_blood_cells(bccd: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine").symlink_to(bccd)
    image = next((bccd / "images").iterdir()).name
    changes = {
        '("circle", "triangle", "square")': '("RBC", "WBC", "Platelets")',
        "val_0001.png": image,
        "python tools/dataset_converters/make_shapes.py": "true",  # the data are there
    }
    follow_own_data(tmp_path, changes)


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The work directories of the demo, which its README's commands made from less data."""
    reader = Reader(tmp_path_factory.mktemp("demo"))
    reader.follow(DEMO_PAGE, range(1))
    assert list(reader.folder.glob("work_dirs/demo/test/*/images/*"))
    return reader.folder / "work_dirs"


@pytest.fixture
def after_the_demo(demo: Path, tmp_path: Path) -> Reader:
    reader = Reader(tmp_path)
    shutil.copytree(demo, tmp_path / "work_dirs", dirs_exist_ok=True)
    return reader


def make_blood_cells(folder: Path, shapes: Path) -> None:
    """Make data/bccd: made-up images, with the names of BCCD's classes."""
    root = Path(shutil.copytree(shapes, folder / "data" / "bccd"))
    for path in (root / "annotations").iterdir():
        content = json.loads(path.read_text())
        for category, name in zip(content["categories"], ("RBC", "WBC", "Platelets"), strict=True):
            category["name"] = name
        path.write_text(json.dumps(content))


def test_the_first_screen_and_the_guide(tmp_path: Path) -> None:
    reader = Reader(tmp_path)
    assert "Active repairs of other libraries" in reader.follow(REPOSITORY / "README.md")
    said = reader.follow(REPOSITORY / "CONTRIBUTING.md")
    assert " passed" in said
    assert "configs/retinanet/README.md" in said


@pytest.mark.long
def test_weights(after_the_demo: Reader) -> None:
    folder = after_the_demo.folder
    torch.save({"state_dict": weights("sa")}, folder / "sa_resnet50.pth.tar")
    shutil.copytree(folder / "work_dirs" / "demo" / "run", folder / "work_dirs" / "mine")
    shutil.copy(next((folder / "work_dirs" / "demo" / "shapes" / "images").iterdir()), folder / "image.jpg")
    after_the_demo.changes['"my_config.py"'] = f'"{DEMO.relative_to(REPOSITORY)}"'
    said = after_the_demo.follow(DOCS / "weights.md")
    assert "features.onnx: image -> " in said
    assert len(list(folder.glob("mine-*.pth"))) == len(list(folder.glob("sa_r18-*.pth.tar"))) == 1
    assert "backbone=dict(type='SAResNet'" in said
    assert (folder / "out" / "preds" / "image.json").is_file()
    assert (folder / "out" / "vis" / "image.jpg").is_file()


@pytest.mark.long
def test_analysis(after_the_demo: Reader, shapes: Path) -> None:
    make_blood_cells(after_the_demo.folder, shapes)
    said = after_the_demo.follow(DOCS / "analysis.md")
    assert "two - all: " in said
    assert "faster-rcnn_sa-r18_fpn_bccd - faster-rcnn_r18_fpn_bccd: " in said
    assert "</html>" in (after_the_demo.folder / "report.html").read_text()
    assert list((after_the_demo.folder / "cam").iterdir())
    assert (after_the_demo.folder / "cam_of_annotations" / "curves.json").is_file()
    assert (after_the_demo.folder / "groups" / "groups.png").is_file()
    assert len(list((after_the_demo.folder / "attention").iterdir())) == 5


@pytest.mark.long
def test_training(shapes: Path, tmp_path: Path) -> None:
    reader = Reader(tmp_path)
    said = reader.follow(DOCS / "training.md")
    assert "faster-rcnn_sa-r50_fpn_1x_coco" in said or MMDETECTION != "mmdet"
    assert "resumed epoch: 1" in said


@pytest.mark.long
def test_the_demos_page(shapes: Path, tmp_path: Path) -> None:
    make_blood_cells(tmp_path, shapes)
    said = Reader(tmp_path).follow(DEMO_PAGE)
    assert said.count("Epoch(val) [1]") == 2  # those of run_comparison are in its runs' logs
    assert said.count("not told apart") == 2


@pytest.mark.long
def test_a_folder_of_images(tmp_path: Path, shapes: Path) -> None:
    make_blood_cells(tmp_path, shapes)
    said = Reader(tmp_path).follow(REPOSITORY / "configs" / "imagenet" / "README.md")
    assert re.search(r"RBC: \d+ images", said)
    assert "classes.txt with 3 classes" in said
    assert (tmp_path / "data" / "cells" / "val.txt").is_file()


@pytest.mark.long
def test_attention_in_a_trained_detector(shapes: Path, tmp_path: Path) -> None:
    make_blood_cells(tmp_path, shapes)
    said = Reader(tmp_path).follow(DOCS / "insertion.md")
    assert "predictions: equal" in said
    assert said.count("Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all") >= 2
    assert "faster-rcnn_r18_fpn_bccd_sa - faster-rcnn_r18_fpn_bccd: " in said


@pytest.mark.long
@pytest.mark.parametrize(
    "name",
    [
        "kernels",
        "reliability",
        "install",
        "troubleshooting",
        "attention",
        "mmcv_operators",
        "studies",
        "experiments",
        "gallery",
    ],
)
def test_other_pages(name: str, tmp_path: Path) -> None:
    Reader(tmp_path).follow(DOCS / f"{name}.md")


def test_every_page_has_its_test() -> None:
    text = Path(__file__).read_text()
    pages = {path.stem for path in DOCS.glob("*.md")}
    assert {page for page in pages if f"{page}.md" not in text and f'"{page}"' not in text} == set()
