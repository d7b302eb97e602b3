"""Hostile and damaged files: refused in one sentence with nothing executed, or read correctly."""

import functools
import http.server
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import fuzz_arguments
import fuzz_files
import fuzz_pickles
import numpy as np
import pytest
import torch
from detectors import user_config
from mmdet.apis import DetInferencer, init_detector
from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.runner import Runner
from PIL import Image
from places import Tool
from safetensors.torch import save_file

from sa_mmdet.analysis.network import Network
from sa_mmdet.coco_format import load_annotations, load_results
from sa_mmdet.engine.check_dataset import check_dataset


class Harm:
    """Pickles as a call that leaves a trace."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


ENTRIES: dict[str, Callable[[Path, Path, Tool], Any]] = {
    "init_cfg": lambda config, file, tool: build_backbone("Pretrained", file),
    "init_cfg by address": lambda config, file, tool: build_backbone("Pretrained", served(file)),
    "ResNetPretrained by address": lambda config, file, tool: build_backbone("ResNetPretrained", served(file)),
    "ResNetPretrained": lambda config, file, tool: build_backbone("ResNetPretrained", file),
    "load_from": lambda config, file, tool: start(config, load_from=str(file)),
    "resume": lambda config, file, tool: start(config, load_from=str(file), resume=True),
    "init_detector": lambda config, file, tool: init_detector(str(config), str(file), device="cpu"),
    "DetInferencer": lambda config, file, tool: DetInferencer(str(config), str(file), device="cpu"),
    "Network": lambda config, file, tool: Network(config, file),
    "convert": lambda config, file, tool: fail(tool("model_converters/convert_checkpoint.py", file, f"{file}.out.pth")),
    "publish": lambda config, file, tool: fail(tool("model_converters/publish_model.py", file, f"{file}.out.pth")),
    "bake": lambda config, file, tool: fail(tool("model_converters/bake_shuffle.py", config, file, f"{file}.out.pth")),
    "export": lambda config, file, tool: fail(tool("deployment/export_onnx.py", config, file, f"{file}.onnx")),
}


def served(file: Path) -> str:
    """The address of a file on a server of our own, which ends with the tests."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(file.parent))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}/{file.name}"


def build_backbone(kind: str, file: Path | str) -> None:
    init_cfg = dict(type=kind, checkpoint=str(file))
    MODELS.build(dict(type="SAResNet", depth=18, groups=16, init_cfg=init_cfg)).init_weights()


def start(config: Path, **options: Any) -> None:
    cfg = Config.fromfile(config)
    cfg.merge_from_dict(dict(work_dir=str(config.parent / "run"), log_level="ERROR", **options))
    for loop in ("train", "val"):
        cfg.update({f"{loop}_cfg": None, f"{loop}_dataloader": None, f"{loop}_evaluator": None})
    cfg.pop("train_evaluator")
    cfg.optim_wrapper = cfg.param_scheduler = None
    Runner.from_cfg(cfg).load_or_resume()


def fail(answer: tuple[int, str, str]) -> None:
    status, _, said = answer
    if status:
        raise ValueError(said)


@pytest.mark.parametrize("entry", ENTRIES)
def test_code_in_a_checkpoint_is_not_run(
    tmp_path: Path, tool: Tool, entry: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "cache"))
    trace = tmp_path / "trace"
    state = {"conv1.weight": torch.zeros(1), "harm": Harm(trace)}
    file = tmp_path / "harm.pth"
    torch.save(dict(state_dict=state, meta=dict(epoch=1, iter=1)), file)
    with pytest.raises(Exception, match=r"harm\.pth|Weights only load failed"):
        ENTRIES[entry](user_config(tmp_path, tmp_path / "mine.py"), file, tool)
    assert not trace.exists()
    torch.load(file, weights_only=False)  # the trap works
    assert trace.exists()


PROGRAM = "import pathlib\npathlib.Path({trace!r}).touch()\nmodel = dict(type='ResNet')\n"


def with_config(file: Path, text: str) -> Path:
    """A checkpoint that records a config, wherever MMEngine looks for one."""
    state = {"conv1.weight": torch.zeros(1), "conv1.bias": torch.zeros(1)}
    meta = dict(cfg=text, config=text, epoch=1, iter=1)
    if file.suffix == ".safetensors":
        save_file(state, file, metadata={"sa_mmdet": json.dumps(dict(cfg=text))})
    else:
        torch.save(dict(state_dict=state, meta=meta, message_hub=dict(runtime_info=dict(cfg=text))), file)
    return file


@pytest.mark.parametrize("name", ["harm.pth", "harm.safetensors"])
@pytest.mark.parametrize("by_address", [False, True])
def test_the_config_in_a_checkpoint_is_not_run_by_the_inferencer(
    tmp_path: Path, name: str, by_address: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "cache"))
    trace = tmp_path / "trace"
    file = with_config(tmp_path / name, PROGRAM.format(trace=str(trace)))
    with pytest.raises(ValueError, match=r"its config is more than names and literals|is not a file"):
        DetInferencer(weights=served(file) if by_address else str(file), device="cpu")
    file = with_config(tmp_path / f"2{name}", f"model = dict(type='os.system', command='touch {trace}')")
    with pytest.raises(ValueError, match=r"type 'os\.system', which is not registered|is not a file"):
        DetInferencer(weights=served(file) if by_address else str(file), device="cpu")
    assert not trace.exists()


def test_the_config_in_a_checkpoint_is_not_run_by_resuming_or_handed_on(tmp_path: Path, tool: Tool) -> None:
    trace = tmp_path / "trace"
    file = with_config(tmp_path / "harm.pth", PROGRAM.format(trace=str(trace)))
    answer = tool("model_converters/publish_model.py", file, tmp_path / "out.pth")
    assert answer[0] == 1
    assert "its config is more than names and literals" in answer[2]
    config = user_config(tmp_path, tmp_path / "mine.py")
    with pytest.raises(ValueError, match="its config is more than names and literals"):
        resume(config, file)
    assert not trace.exists()


def resume(config: Path, file: Path) -> None:
    cfg = Config.fromfile(config)
    cfg.merge_from_dict(dict(work_dir=str(config.parent / "run"), log_level="ERROR"))
    dataset(config.parent)
    cfg.train_dataloader.dataset.update(
        ann_file="a.json", data_prefix=dict(img=""), metainfo=dict(classes=("thing",)), filter_cfg=None
    )
    for loop in ("val", "test"):
        cfg.update({f"{loop}_cfg": None, f"{loop}_dataloader": None, f"{loop}_evaluator": None})
    runner = Runner.from_cfg(cfg)
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    runner.resume(str(file))


def dataset(folder: Path, **changes: Any) -> Any:
    """A data set of two images, with some of its annotations changed: {kind: (number, field, value)}."""
    content: dict[str, Any] = dict(
        images=[dict(id=n, width=8, height=8, file_name=f"{n}.png") for n in (1, 2)],
        annotations=[dict(id=n, image_id=n, category_id=1, bbox=[1, 1, 4, 4], area=16, iscrowd=0) for n in (1, 2)],
        categories=[dict(id=1, name="thing")],
    )
    for kind, (number, field, value) in changes.items():
        content[kind][number][field] = value
    for n in (1, 2):
        cv2.imwrite(str(folder / f"{n}.png"), np.zeros((8, 8, 3), np.uint8))
    (folder / "a.json").write_text(json.dumps(content))
    return DATASETS.build(
        dict(
            type="CocoDataset",
            data_root=str(folder),
            ann_file="a.json",
            metainfo=dict(classes=("thing",)),
            data_prefix=dict(img=""),
            pipeline=[],
        )
    )


@pytest.mark.parametrize(
    ("kind", "change", "sentence"),
    [
        ("images", (1, "id", 1), "images: the id 1 is used twice"),
        ("images", (0, "width", 10**9), "image 1 has width=1000000000: give pixels from 1 to 100000"),
        ("images", (0, "height", -5), "image 1 has height=-5: give pixels"),
        ("annotations", (0, "bbox", [1, 1, float("inf"), 4]), r"annotation 1 has an invalid box or area"),
        ("annotations", (0, "bbox", [1, 1, float("nan"), 4]), r"annotation 1 has an invalid box or area"),
    ],
)
def test_annotations_that_are_wrong(tmp_path: Path, kind: str, change: Any, sentence: str) -> None:
    check_dataset(dataset(tmp_path))
    with pytest.raises(ValueError, match=rf"a\.json: {sentence}"):
        check_dataset(dataset(tmp_path, **{kind: change}))


def test_annotations_of_one_id_are_refused_by_mmdetection(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="are not unique"):
        dataset(tmp_path, annotations=(1, "id", 1))


def test_objects_of_an_unknown_category_are_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("sa_mmdet.engine.check_dataset.print_log", lambda message, **options: said.append(message))
    check_dataset(dataset(tmp_path, annotations=(0, "category_id", 77)))
    [message] = said
    assert "a.json: 1 objects have categories that the file does not list" in message


def test_panoptic_annotations_have_another_form(tmp_path: Path) -> None:
    dataset(tmp_path)
    content = json.loads((tmp_path / "a.json").read_text())
    content["categories"][0]["isthing"] = 1
    content["annotations"] = [dict(image_id=n, file_name=f"{n}.png", segments_info=[]) for n in (1, 2)]
    (tmp_path / "a.json").write_text(json.dumps(content))
    options = dict(data_root=str(tmp_path), ann_file="a.json", data_prefix=dict(img="", ann="", seg=""), pipeline=[])
    classes = dict(classes=("thing",), thing_classes=("thing",), stuff_classes=())
    check_dataset(DATASETS.build(dict(type="CocoPanopticDataset", metainfo=classes, test_mode=True, **options)))


def test_masks_that_would_read_past_their_end_or_never_end(tmp_path: Path) -> None:
    dataset(tmp_path)
    coco = load_annotations(tmp_path / "a.json")
    for counts in ("P", "0P", "ZZ", "04", "\x00", "é"):  # more is announced, another size, no code
        entry = dict(image_id=1, category_id=1, score=0.5, segmentation=dict(size=[8, 8], counts=counts))
        (tmp_path / "r.json").write_text(json.dumps([entry]))
        with pytest.raises(ValueError, match="not a compressed run-length code of the image's size"):
            load_results(tmp_path / "r.json", coco)


PIXELS = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)


def image_file(folder: Path, name: str) -> Path:
    path = folder / name
    if name == "16 bit.png":
        cv2.imwrite(str(path), PIXELS[..., ::-1].astype(np.uint16) * 257)
    elif name == "one pixel.png":
        Image.fromarray(PIXELS[:1, :1]).save(path)
    elif name == "30000 pixels.png":
        Image.new("L", (30_000, 30_000)).save(path)
    elif name == "line.png":
        cv2.imwrite(str(path), np.zeros((8, 30_000, 3), np.uint8))
    elif name == "text.png":
        path.write_text("hello")
    elif name == "empty.png":
        path.touch()
    else:
        mode = {"cmyk.jpg": "CMYK", "grey.png": "L", "palette.png": "P", "alpha.png": "RGBA"}.get(name, "RGB")
        Image.fromarray(PIXELS).convert(mode).save(path)
        if name.startswith("cut"):
            path.write_bytes(path.read_bytes()[:2000])
    return path


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Network:
    folder = tmp_path_factory.mktemp("network")
    config = user_config(folder, folder / "mine.py")
    torch.save(MODELS.build(Config.fromfile(config).model).state_dict(), folder / "weights.pth")
    return Network(config, folder / "weights.pth")


@pytest.mark.parametrize("name", ["plain.png", "16 bit.png", "alpha.png", "cmyk.jpg", "grey.png", "palette.png"])
def test_unusual_images_are_read_correctly(network: Network, tmp_path: Path, name: str) -> None:
    shown, _, inputs = network.read(image_file(tmp_path, name))
    assert inputs.isfinite().all()
    if name in ("plain.png", "16 bit.png", "alpha.png"):
        assert np.array_equal(shown, PIXELS[..., ::-1])
    else:
        with Image.open(tmp_path / name) as image:
            expected = np.asarray(image.convert("RGB"), float)[..., ::-1]
        assert np.abs(shown - expected).mean() < 12  # decoders differ in CMYK's profile and JPEG's rounding


@pytest.mark.parametrize("name", ["cut.png", "cut.jpg", "text.png", "empty.png", "line.png"])
def test_what_is_not_a_usable_image_is_named(network: Network, tmp_path: Path, name: str) -> None:
    path = image_file(tmp_path, name)
    with pytest.raises(ValueError, match=rf"{name}: is not a readable image: ."):
        network.read(path)


def test_one_pixel(network: Network, tmp_path: Path) -> None:
    assert network.read(image_file(tmp_path, "one pixel.png"))[2].shape[2:] == (128, 128)


@pytest.mark.long
def test_thirty_thousand_pixels_each_way(network: Network, tmp_path: Path) -> None:
    assert network.read(image_file(tmp_path, "30000 pixels.png"))[0].shape == (30_000, 30_000, 3)


def test_random_arguments_and_damaged_files() -> None:
    # More of them: python tests/helpers/fuzz_arguments.py 10000, and fuzz_files.py, fuzz_pickles.py.
    assert fuzz_arguments.fuzz(300)["built"] > 40
    answers = fuzz_files.fuzz(300)
    assert all(answers[f"{what}: read"] > 0 for what in ("annotations", "results", "run"))
    assert len(fuzz_pickles.fuzz(150)) > 10
