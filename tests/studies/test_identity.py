"""A run's settings are part of it: runs of other settings are neither continued nor judged, whoever changed them."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from places import Tool
from study_runs import Runs

from sa_mmdet.studies import launching

TOOL = "analysis_tools/run_comparison.py"
Small = Callable[[str], list[Path]]


@pytest.fixture
def configs(small: Small) -> list[Path]:
    found = small("metric")
    for path in found:
        path.write_text(path.read_text() + "train_cfg = dict(max_epochs=3)\n")
    return found


def test_runs_of_other_settings_are_not_judged(
    runs: Runs, configs: list[Path], tool: Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (TOOL, *configs, "--seeds", 0, 1, "--work-dir", tmp_path / "work", "--resamples", 5)
    assert tool(*arguments)[0] == 0
    written = (tmp_path / "work" / "comparison.json").read_text()
    status, _, errors = tool(*arguments, "--judge", "--cfg-options", "train_cfg.max_epochs=6")
    assert status == 1
    assert "was begun with other settings (before, now): train_cfg.max_epochs (3, 6)" in errors
    other = tmp_path / "other.json"  # the same images with other objects
    other.write_text((tmp_path / "annotations" / "instances_val.json").read_text().replace('"bbox": [', '"bbox": [1'))
    status, _, errors = tool(*arguments, "--judge", "--cfg-options", f"test_evaluator.ann_file={other}")
    assert status == 1
    assert "test_evaluator.ann_file (" in errors
    assert (tmp_path / "work" / "comparison.json").read_text() == written
    assert tool(*arguments, "--judge")[0] == 0


@pytest.mark.parametrize("edited_in", ["train", "test"])
def test_a_config_that_is_edited_while_the_study_runs_is_named(
    edited_in: str, runs: Runs, configs: list[Path], tool: Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in configs:
        path.write_text(path.read_text() + "model = dict(depth=1)\n")

    def edited(command: list[str], *others: Any) -> int:
        if "sa-plain/seed0" in " ".join(command) and f"{edited_in}.py" in command[1]:
            configs[1].write_text(configs[1].read_text().replace("depth=1", "depth=2"))
        return runs(command, *others)

    monkeypatch.setattr(launching, "run", edited)
    arguments = (TOOL, *configs, "--seeds", 0, 1, "--work-dir", tmp_path / "work", "--resamples", 5)
    status, _, errors = tool(*arguments)
    assert status == 1
    assert f"{tmp_path / 'work' / 'sa-plain' / 'seed0'}: was {'begun' if edited_in == 'train' else 'tested'} " in errors
    assert "model.depth (2, 1)" in errors
    assert not (tmp_path / "work" / "comparison.json").exists()


def test_settings_are_known_without_mmengines_local_backend(
    runs: Runs, configs: list[Path], tool: Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorBoard's backend records no config; MMEngine's runner also writes it beside the checkpoints."""

    def without_local_backend(command: list[str], *others: Any) -> int:
        status = runs(command, *others)
        folder = Path(command[command.index("--work-dir") + 1])
        for recorded in folder.glob("*/vis_data/config.py"):
            recorded.rename(folder / Path(command[2]).name)
        for left in folder.glob("*/vis_data"):
            shutil.rmtree(left.parent)
        return status

    monkeypatch.setattr(launching, "run", without_local_backend)
    arguments = (TOOL, *configs, "--seeds", 0, "--work-dir", tmp_path / "work", "--resamples", 5)
    status, _, errors = tool(*arguments)
    assert status == 0, errors
    status, _, errors = tool(*arguments, "--cfg-options", "train_cfg.max_epochs=6")
    assert status == 1
    assert "was begun with other settings (before, now): train_cfg.max_epochs (3, 6)" in errors


@pytest.mark.parametrize("change", ["data_preprocessor.mean=1", "sync_bn=torch"])
def test_settings_outside_the_model_count(
    change: str, runs: Runs, configs: list[Path], tool: Tool, tmp_path: Path
) -> None:
    for path in configs:
        path.write_text(path.read_text() + "data_preprocessor = dict(mean=0)\n")
    arguments = (TOOL, *configs, "--seeds", 0, "--work-dir", tmp_path / "work", "--resamples", 5)
    assert tool(*arguments)[0] == 0
    status, _, errors = tool(*arguments, "--cfg-options", change)
    assert status == 1
    assert f"was begun with other settings (before, now): {change.partition('=')[0]} (" in errors


def test_options_may_be_given_in_several_places_as_for_train_py(
    runs: Runs, configs: list[Path], tool: Tool, tmp_path: Path
) -> None:
    options = ("--cfg-options", "train_cfg.max_epochs=5", "--cfg-options", "train_cfg.val_interval=2")
    arguments = (TOOL, *configs, "--seeds", 0, "--work-dir", tmp_path / "work", "--resamples", 5)
    assert tool(*arguments, *options)[0] == 0
    recorded = next((tmp_path / "work" / "plain" / "seed0").glob("*/vis_data/config.py")).read_text()
    assert "max_epochs=5" in recorded
    assert "val_interval=2" in recorded


@pytest.mark.parametrize("where", ["config", "options"])
def test_a_folder_for_the_checkpoints_of_all_runs_is_refused(
    where: str, runs: Runs, configs: list[Path], tool: Tool, tmp_path: Path
) -> None:
    """MMEngine names a folder in it by the last part of the work directory alone, the seed."""
    arguments = [TOOL, *configs, "--seeds", 0, "--work-dir", tmp_path / "work"]
    if where == "config":
        for path in configs:
            path.write_text(path.read_text() + "default_hooks = dict(checkpoint=dict(out_dir='kept'))\n")
    else:
        arguments += ["--cfg-options", "default_hooks.checkpoint.out_dir=kept"]
    status, _, errors = tool(*arguments)
    assert status == 1
    assert "default_hooks.checkpoint.out_dir 'kept': runs of different configs with one seed would share" in errors
    assert not runs.calls
