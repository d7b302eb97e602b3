"""Every config builds, and the metafiles and tables of results agree with the configs."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from config_files import CLASSIFIERS, COCO, DETECTORS, RUNNABLE, make_tables
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.fileio import load
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import DefaultScope
from places import CONFIGS, REPOSITORY

from sa_mmdet.attention import Attention
from sa_mmdet.compat.old_torch import shapes_only
from sa_mmdet.evaluation.networks import attention_name, own_model


def build(path: Path) -> Any:
    cfg = Config.fromfile(path)
    with shapes_only():
        return MODELS.build(cfg.model)


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=[pytest.mark.long] * ("-r101" in path.stem), id=path.stem) for path in DETECTORS],
)
def test_config_builds(path: Path) -> None:
    model = build(path)
    found = {make_tables.ATTENTION[m._abbr_] for m in model.modules() if isinstance(m, Attention)}
    variant = path.stem.split("_")[1].rpartition("-r")[0].split("-")[0]
    assert found == ({make_tables.ATTENTION[variant]} if variant else set())


# The numbers of classes by what the names of configs end with.
CLASSES = {"in1k": 1000, "folder": 3, "cifar10": 10, "cifar100": 100, "places365": 365}


def _deep(path: Path) -> bool:
    """Whether a classifier has many blocks, all like those of another that is tested here."""
    return path.parent.name == "cifar" and (path.stem.startswith("sa-") or "cifar100" in path.stem)


@pytest.mark.parametrize(
    "path", [pytest.param(path, marks=[pytest.mark.long] * _deep(path), id=path.stem) for path in CLASSIFIERS]
)
def test_classifier_builds_and_every_parameter_has_a_gradient(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mmpretrain", reason="MMPretrain, or torchvision beneath it, is not installed")
    for part in ("train", "val"):
        for name in ("cat", "dog", "hen"):
            (tmp_path / part / name).mkdir(parents=True)
    monkeypatch.setenv("IMAGE_FOLDER", str(tmp_path))
    cfg = Config.fromfile(path)
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        model: Any = ROOT_MODELS.build({**cfg.model, "_scope_": "mmpretrain"})
    found = {make_tables.ATTENTION[m._abbr_] for m in model.modules() if isinstance(m, Attention)}
    variant = path.stem.partition("-")[0]
    assert found == ({make_tables.ATTENTION[variant]} if variant in make_tables.ATTENTION else set())
    model.train()
    classes = cfg.model.head.get("num_classes", 1000)  # Inception's backbone has the last layer
    assert classes == CLASSES[path.stem.split("_")[-1]] == cfg.get("data_preprocessor", {}).get("num_classes", classes)
    side = 96 if "inception" in path.stem else 64  # its smallest maps
    loss = model.head.loss(model.extract_feat(torch.randn(2, 3, side, side)), _labels(classes))["loss"]
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def _labels(classes: int) -> list[Any]:
    from mmpretrain.structures import DataSample

    return [DataSample().set_gt_label(i % classes) for i in range(2)]


@pytest.mark.parametrize("paths", [COCO[::11], pytest.param(COCO, marks=pytest.mark.long)], ids=["some", "all"])
def test_coco_configs_change_only_the_backbone(paths: list[Path]) -> None:
    for path in paths:
        plain = re.sub("_[a-z]+-r", "_r", path.name)
        base = Config._get_cfg_path(f"mmdet::{path.parent.name}/{plain}", str(path))[0]
        ours, theirs = (_without_scope(Config.fromfile(name).to_dict()) for name in (path, base))
        del ours["model"]["backbone"], theirs["model"]["backbone"]
        assert {key: value for key, value in ours.items() if key in theirs} == theirs
        assert set(ours) - set(theirs) <= {"custom_imports", "custom_hooks"}


def _without_scope(value: Any) -> Any:
    """A config without the key '_scope_', which MMEngine adds to what another package's config defines."""
    if isinstance(value, dict):
        return {key: _without_scope(inner) for key, inner in value.items() if key != "_scope_"}
    return [_without_scope(inner) for inner in value] if isinstance(value, list) else value


def test_names_of_configs_are_unique() -> None:
    names = [path.name for path in CONFIGS.rglob("*.py")]
    assert len(names) == len(set(names))


def test_metafiles_name_every_config_and_nothing_else() -> None:
    metafiles = load(REPOSITORY / "model-index.yml")["Import"]
    assert sorted(metafiles) == sorted(str(path.relative_to(REPOSITORY)) for path in CONFIGS.rglob("metafile.yml"))
    models = [
        (Path(metafile).parent, model) for metafile in metafiles for model in load(REPOSITORY / metafile)["Models"]
    ]
    configs = [str(folder / f"{model['Name']}.py") for folder, model in models]
    assert sorted(configs) == sorted(str(path.relative_to(REPOSITORY)) for path in RUNNABLE)
    # openmim fails with an internal error where it downloads an entry that has a config and no weights.
    for config, (_, model) in zip(configs, models, strict=True):
        assert ("Config" in model) == ("Weights" in model)
        assert model.get("Config", config) == config
        assert model.get("Weights", "https://").startswith("https://")
    collections = [c for metafile in metafiles for c in load(REPOSITORY / metafile)["Collections"]]
    assert all((REPOSITORY / collection["README"]).is_file() for collection in collections)


@pytest.mark.parametrize("folder", make_tables.folders(), ids=lambda folder: folder.name)
def test_result_tables_are_up_to_date(folder: Path) -> None:
    assert (folder / "README.md").read_text() == make_tables.updated(folder), "run python tools/misc/make_tables.py"


def test_our_results_follow_those_of_the_paper(tmp_path: Path) -> None:
    folder = tmp_path / "faster_rcnn"
    folder.mkdir()
    text = (CONFIGS / "faster_rcnn" / "metafile.yml").read_text().rstrip("\n")
    metrics = "Metrics:\n          box AP: 12.5\n"
    results = f"    Results:\n      - Task: Object Detection\n        Dataset: COCO\n        {metrics}"
    (folder / "metafile.yml").write_text(f"{text}\n{results}")
    lines = make_tables.table(folder).splitlines()
    assert "| SA | paper | 60.53 | 283.60 | 41.0 | 62.7 |" in lines[-2]
    assert "| SA | ours |  |  | 12.5 |  |" in lines[-1]


def test_a_network_whose_attention_was_taken_out_counts_as_plain() -> None:
    backbone = own_model(CONFIGS / "senet" / "efficientnet-b0-without-se_8xb32_in1k.py")["backbone"]
    assert attention_name(backbone) == "none"
    backbone["replace"] = {"layers.*.*.se": dict(type="SqueezeExcitation")}
    assert attention_name(backbone) == "SE"
