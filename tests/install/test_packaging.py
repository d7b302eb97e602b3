"""The wheel that a user installs, and how openmim works with it."""

import ast
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from places import MMDETECTION, REPOSITORY

DEMO = "mask-rcnn_sa-r18_fpn_shapes.py"
SHORT = ["train_cfg.max_epochs=1", "default_hooks.checkpoint.save_best=None"]

by_name = pytest.mark.skipif(
    MMDETECTION != "mmdet", reason="onedl-mim 0.5.1 takes the first folder of a wheel's record for the package"
)


def pip(*arguments: object, **environment: str) -> None:
    command = [sys.executable, "-m", "pip", "-q", *map(str, arguments)]
    subprocess.run(command, check=True, env=os.environ | environment)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of the files that git would check out: other files of the folder must not matter."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    listed = subprocess.check_output(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=REPOSITORY, text=True
    )
    for name in filter(None, listed.split("\0")):
        target, origin = source / name, REPOSITORY / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if origin.is_symlink():
            target.symlink_to(os.readlink(origin))
        elif origin.exists():
            target.write_bytes(origin.read_bytes())
    # The operators in C++ take a minute to compile, and the set-up has just done so: here a compiler is missing.
    pip("wheel", "--no-build-isolation", "--no-deps", "-w", out, source, CXX="false")
    [path] = out.glob("*.whl")
    return path


def test_it_requires_python_3_10(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        [metadata] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        assert "Requires-Python: >=3.10\n" in archive.read(metadata).decode()
    for folder in ("sa_mmdet", "tools", "configs", "tests", ".ci"):
        for path in (REPOSITORY / folder).rglob("*.py"):
            ast.parse(path.read_text(), str(path), feature_version=(3, 10))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment variables of a process that finds the unpacked wheel before the checkout."""
    site = tmp_path_factory.mktemp("site")
    pip("install", "--no-deps", "--target", site, wheel)
    return os.environ | {"PYTHONPATH": str(site)}


def mim(environment: dict[str, str], cwd: Path, *arguments: object) -> str:
    command = [sys.executable, "-m", "mim", *map(str, arguments)]
    result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, f"{command}\n{result.stdout[-3000:]}{result.stderr[-3000:]}"
    return result.stdout + result.stderr


def test_the_wheel_contains_files_where_the_checkout_has_links(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("configs", "tools"):
        for path in (REPOSITORY / folder).rglob("*"):
            if path.suffix in (".py", ".yml", ".csv", ".md"):
                assert f"sa_mmdet/.mim/{path.relative_to(REPOSITORY)}" in names
    assert {"sa_mmdet/.mim/model-index.yml", "sa_mmdet/py.typed"} <= names
    assert not any(name.startswith(("tests/", "configs/", "tools/")) for name in names)


@pytest.mark.long
@by_name
def test_search(installed: dict[str, str], tmp_path: Path) -> None:
    found = mim(installed, tmp_path, "search", "sa_mmdet", "--valid-config")
    assert "faster-rcnn_sa-r50_fpn_1x_coco" in found
    assert "retinanet_r101_fpn_1x_coco" in found


@by_name
@pytest.mark.long
def test_download_offers_the_weights_that_exist_and_refuses_others(installed: dict[str, str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mim", "download", "sa_mmdet", "--dest", str(tmp_path), "--config"]
    result = subprocess.run(
        [*command, "faster-rcnn_sa-r50_fpn_1x_coco"], cwd=tmp_path, env=installed, capture_output=True, text=True
    )
    last = result.stderr.strip().splitlines()[-1]
    assert "ValueError" in last
    assert "Expected configs: " in last
    offered, _, refused = last.partition("but got")
    assert "faster-rcnn_sa-r50_fpn_1x_coco" in refused
    names = set(re.findall(r"'([\w-]+)'", offered))
    plain = {"faster-rcnn", "mask-rcnn", "retinanet"}
    assert names == {f"{name}_r{depth}_fpn_1x_coco" for name in plain for depth in (50, 101)}

    # One that exists is not downloaded again.
    name = "faster_rcnn_r50_fpn_1x_coco_20200130-047c8118.pth"
    (tmp_path / name).touch()
    said = mim(
        installed, tmp_path, "download", "sa_mmdet", "--config", "faster-rcnn_r50_fpn_1x_coco", "--dest", tmp_path
    )
    assert f"{name} exists" in said
    assert (tmp_path / "faster-rcnn_r50_fpn_1x_coco.py").is_file()


@by_name
@pytest.mark.long
def test_train_test_run_and_gridsearch(installed: dict[str, str], shapes: Path, tmp_path: Path) -> None:
    environment = installed | {"SHAPES_ROOT": str(shapes)}
    options = ["--gpus", 0, "--cfg-options", *SHORT]
    trained = mim(environment, tmp_path, "train", "sa_mmdet", DEMO, "--work-dir", "one", *options)
    assert f"site0/sa_mmdet/.mim/configs/demo/{DEMO}" in trained
    assert (tmp_path / "one" / "epoch_1.pth").exists()

    tested = mim(environment, tmp_path, "test", "sa_mmdet", DEMO, "--checkpoint", "one/epoch_1.pth")
    assert tested.count("Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all") == 2  # boxes and masks
    mim(environment, tmp_path, "run", "sa_mmdet", "make_shapes", "made", "--train", 2, "--val", 1)
    assert len(list((tmp_path / "made" / "images").iterdir())) == 3

    search = ["--search-args", "--model.backbone.groups 8 32"]
    mim(environment, tmp_path, "gridsearch", "sa_mmdet", DEMO, "--work-dir", "grid", *search, *options)
    assert len(list(tmp_path.glob("grid*/**/epoch_1.pth"))) == 2


@pytest.mark.long
def test_mmdetections_own_script_accepts_a_config_of_the_wheel(
    installed: dict[str, str], shapes: Path, tmp_path: Path
) -> None:
    path = Path(installed["PYTHONPATH"]) / "sa_mmdet" / ".mim" / "configs" / "demo" / DEMO
    options = ["--gpus", 0, "--cfg-options", *SHORT]
    environment = installed | {"SHAPES_ROOT": str(shapes)}
    mim(environment, tmp_path, "train", MMDETECTION, path, "--work-dir", "two", *options)
    assert (tmp_path / "two" / "epoch_1.pth").exists()


def test_openmim_finds_the_checkout(tmp_path: Path) -> None:
    """openmim does not find .mim of an editable install; `make install` adds a link for it."""
    code = "import pkg_resources as p, os; print(os.path.join(p.get_distribution('sa_mmdet').location, 'sa_mmdet'))"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    if result.returncode:
        pytest.skip("sa_mmdet is not installed in this environment")
    assert Path(result.stdout.strip(), ".mim", "model-index.yml").exists()


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "positional", "launcher_argument"),
    [
        ("train.py", ["absent.py"], "--local_rank=0"),
        pytest.param("test.py", ["absent.py", "absent.pth"], "--local-rank=0", marks=pytest.mark.long),
    ],
)
def test_the_tools_accept_the_arguments_of_launchers(
    name: str, positional: list[str], launcher_argument: str, tmp_path: Path
) -> None:
    command = [sys.executable, str(REPOSITORY / "tools" / name), *positional, "--launcher", "none", launcher_argument]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert "absent.py" in result.stderr.splitlines()[-1]
    assert "unrecognized" not in result.stderr
