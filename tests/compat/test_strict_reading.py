"""OpenMMLab's packages run nothing that a file holds, whichever way they take; a user's own calls are as they were."""

import hashlib
import os
import pickle
import subprocess
import sys
import types
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import needs
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.fileio import load
from mmengine.runner import checkpoint
from mmengine.runner.checkpoint import load_checkpoint

from sa_mmdet.compat import torchvision_names
from sa_mmdet.compat.downloads import load_url

NEXT = os.environ.get("MMENGINE_NEXT", "")  # a folder with a later MMEngine, put there by pip install --target


class Harm:
    """Pickles as a call that leaves a trace."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


@pytest.fixture
def harmful(tmp_path: Path) -> Iterator[Path]:
    """A checkpoint that would leave a trace, which must not be there at the end."""
    trace = tmp_path / "trace"
    torch.save(dict(state_dict=Harm(trace)), tmp_path / "harm.pth")
    yield tmp_path / "harm.pth"
    assert not trace.exists()
    torch.load(tmp_path / "harm.pth", weights_only=False)  # the trap works, and the user's own call runs it
    assert trace.exists()


def module_of_openmmlab(source: str) -> Any:
    """A module of a later MMEngine."""
    module = types.ModuleType("mmengine.runner.to_come")
    exec(source, module.__dict__)
    return module


LATER: dict[str, str] = {
    "as 0.11 does": "import torch\ndef read(file): return torch.load(file, weights_only=False)",
    "from its module": "from torch.serialization import load\ndef read(file): return load(file, weights_only=False)",
    "by an address": "import torch\ndef read(file): return torch.hub.load_state_dict_from_url(\n"
    "    'https://a.b/harm.pth', weights_only=False)",
    "by the model zoo": "from torch.utils import model_zoo\ndef read(file): return model_zoo.load_url('https://a.b/harm.pth')",
    "with numpy": "import numpy\ndef read(file): return numpy.load(str(file) + '.npy', allow_pickle=True)",
    "with its own file reader": "from mmengine.fileio import load\ndef read(file): return load(str(file) + '.pkl')",
}


@pytest.mark.parametrize("way", LATER)
def test_no_version_to_come_runs_a_checkpoint(
    way: str, harmful: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setattr(torch.hub, "_hub_dir", str(cache))
    monkeypatch.setattr(
        torch.hub, "download_url_to_file", lambda url, path, *_, **__: Path(path).write_bytes(harmful.read_bytes())
    )
    (tmp_path / "harm.pth.pkl").write_bytes(pickle.dumps(Harm(tmp_path / "trace")))
    np.save(tmp_path / "harm.pth.npy", np.array([Harm(tmp_path / "trace")], dtype=object))
    with pytest.raises(pickle.UnpicklingError, match="was not run"):
        module_of_openmmlab(LATER[way]).read(harmful)


def test_functions_that_were_taken_before_the_import_run_nothing(tmp_path: Path) -> None:
    code = f"""
import pathlib, sys, types, torch
module = types.ModuleType("mmengine.taken_before")
exec("from torch import load\\ndef read(file): return load(file, weights_only=False)", module.__dict__)
late = module.load  # in a place where it cannot be replaced
exec("def read_by(load, file): return load(file, weights_only=False)", module.__dict__)
class Harm:
    def __reduce__(self): return pathlib.Path.touch, (pathlib.Path({str(tmp_path / "trace")!r}),)
torch.save(Harm(), {str(tmp_path / "harm.pth")!r})
torch.save(dict(a=torch.ones(1)), {str(tmp_path / "good.pth")!r})
import sa_mmdet
for file in ("harm.pth",):
    for read in (module.read, lambda file: module.read_by(late, file)):
        try:
            read({str(tmp_path)!r} + "/" + file)
        except Exception as error:
            print(type(error).__name__)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["RefusedFileError"] * 2
    assert not (tmp_path / "trace").exists()


@pytest.mark.skipif(not NEXT, reason="MMENGINE_NEXT does not name a folder with a later MMEngine")
def test_a_later_mmengine_runs_nothing_and_loads_the_rest(tmp_path: Path) -> None:
    code = f"""
import pathlib, torch, mmengine
from mmengine.runner.checkpoint import load_checkpoint, load_from_local
assert mmengine.__file__.startswith({NEXT!r}), mmengine.__file__
class Harm:
    def __reduce__(self): return pathlib.Path.touch, (pathlib.Path({str(tmp_path / "trace")!r}),)
torch.save(dict(state_dict=Harm()), {str(tmp_path / "harm.pth")!r})
torch.save(dict(state_dict=torch.nn.Linear(1, 1).state_dict()), {str(tmp_path / "good.pth")!r})
import sa_mmdet
load_checkpoint(torch.nn.Linear(1, 1), {str(tmp_path / "good.pth")!r}, strict=True)
for read in (load_from_local, lambda *a: load_checkpoint(torch.nn.Linear(1, 1), *a)):
    try:
        read({str(tmp_path / "harm.pth")!r}, "cpu")
    except Exception as error:
        print(type(error).__name__)
print(mmengine.__version__)
"""
    paths = os.pathsep.join([NEXT, *filter(None, [os.environ.get("PYTHONPATH")])])
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths}
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split().count("RefusedFileError") == 2
    assert not (tmp_path / "trace").exists()


def test_an_environment_variable_does_not_open_it(harmful: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(pickle.UnpicklingError):
        load_checkpoint(torch.nn.Linear(1, 1), str(harmful))


@pytest.mark.parametrize("state", [3, [torch.ones(1)], {1: torch.ones(1)}, {("a",): torch.ones(1)}])
def test_a_state_dict_that_is_none_is_named(tmp_path: Path, state: Any) -> None:
    torch.save(dict(state_dict=state), tmp_path / "odd.pth")
    with pytest.raises(ValueError, match=r"odd\.pth: its state_dict is not a dict of names"):
        load_checkpoint(torch.nn.Linear(1, 1), str(tmp_path / "odd.pth"))


@pytest.mark.skipif(not hasattr(torch.serialization, "get_safe_globals"), reason="came with PyTorch 2.4")
def test_nothing_is_added_to_what_the_user_allows() -> None:
    code = "import torch; before = set(map(str, torch.serialization.get_safe_globals())); import mmdet.apis, mmcv.ops\n"
    code += "import sa_mmdet; added = set(map(str, torch.serialization.get_safe_globals())) - before\n"
    code += "print([name for name in added if 'mmengine' in name or 'numpy' in name or 'sa_mmdet' in name])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr


USERS_OWN = """
import io, sys, torch
from mmengine.logging.history_buffer import HistoryBuffer
class Mine:
    def __setstate__(self, state): pass
def allow(): torch.serialization.add_safe_globals([(Mine, "mmengine.logging.history_buffer.HistoryBuffer")])
if "before" in sys.argv: allow()
import sa_mmdet
if "after" in sys.argv: allow()
history = HistoryBuffer()
history._log_history = history._count_history = []
history._statistics_methods = {}
torch.save(history, file := io.BytesIO())
file.seek(0)
print(type(torch.load(file, weights_only=True)) is Mine)
"""


@pytest.mark.skipif(needs.OLD, reason="add_safe_globals takes names from PyTorch 2.6 on")
@pytest.mark.parametrize("order", ["before", pytest.param("after", marks=pytest.mark.long)])
@pytest.mark.parametrize("seed", [3, *(pytest.param(seed, marks=pytest.mark.long) for seed in (0, 1, 2, *range(4, 9)))])
def test_what_the_user_allows_is_not_contradicted(order: str, seed: int) -> None:
    """Of two entries of one name, PyTorch takes either, by the order of a set, which changes with the hash seed."""
    environment = os.environ | dict(PYTHONHASHSEED=str(seed))
    command = [sys.executable, "-c", USERS_OWN, order]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.stdout.strip() == "True", result.stderr


class Served:
    """What addresses give, and which of them were asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path):
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        monkeypatch.setattr(torch.hub, "_hub_dir", str(folder))
        monkeypatch.setattr(torch.hub, "download_url_to_file", self._download)

    def _download(self, url: str, path: str, *arguments: Any, **options: Any) -> None:
        self.asked.append(url)
        Path(path).write_bytes(self.files[url])


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Served:
    return Served(monkeypatch, tmp_path / "cache")


def saved(path: Path, content: object) -> bytes:
    torch.save(content, path)
    return path.read_bytes()


def named_by_hash(data: bytes) -> str:
    return f"resnet50-{hashlib.sha256(data).hexdigest()[:8]}.pth"


def test_the_hash_in_a_name_is_checked_each_time(served: Served, tmp_path: Path) -> None:
    good, evil = saved(tmp_path / "a", dict(w=torch.ones(2))), saved(tmp_path / "b", dict(w=torch.zeros(2)))
    name = named_by_hash(good)
    served.files = {f"https://a.com/{name}": good, f"https://b.com/{name}": evil}
    with pytest.raises(pickle.UnpicklingError, match="does not have the SHA-256"):
        checkpoint.load_from_http(f"https://b.com/{name}")
    (tmp_path / "cache" / "checkpoints" / name).unlink()
    assert checkpoint.load_from_http(f"https://a.com/{name}")["w"].sum() == 2
    assert checkpoint.load_from_http(f"https://b.com/{name}")["w"].sum() == 2  # the same file, whoever has it
    assert len(served.asked) == 2
    (tmp_path / "cache" / "checkpoints" / name).write_bytes(evil)
    with pytest.raises(pickle.UnpicklingError, match="remove it and try again"):
        checkpoint.load_from_http(f"https://a.com/{name}")


def test_hosts_do_not_share_names_without_a_hash(served: Served, tmp_path: Path) -> None:
    served.files = {f"https://{host}.com/epoch-20240101.pth": saved(tmp_path / host, dict(w=host)) for host in "ab"}
    for _ in range(2):  # the second time from the cache
        assert [load_url(url)["w"] for url in served.files] == ["a", "b"]
    assert len(served.asked) == 2
    with pytest.raises(pickle.UnpicklingError, match="has no name of a file"):
        load_url("https://a.com/")


def test_a_served_archive_is_not_unpacked_into_the_cache(served: Served, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr("resnet50-0676ba61.pth", b"evil")
    served.files = {"https://a.com/evil.pth": (tmp_path / "evil.zip").read_bytes()}
    with pytest.raises(pickle.UnpicklingError, match="without a checkpoint in it"):
        checkpoint.load_from_http("https://a.com/evil.pth")
    assert not list((tmp_path / "cache").rglob("resnet50*"))


def test_torchvision_names_need_no_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(torchvision_names, "load_from_http", lambda url, map_location: asked.append(url))
    torchvision_names.load_from_torchvision("torchvision://resnet50")
    assert asked[0].endswith("resnet50-0676ba61.pth")
    with pytest.raises(ValueError, match="torchvision://resnet51"):
        torchvision_names.load_from_torchvision("torchvision://resnet51")


def annotations(folder: Path, name: str, trace: Path, harm: bool) -> Path:
    path = folder / name
    if name.endswith(".pkl"):
        content = dict(metainfo={}, data_list=[dict(img_path="a.png", boxes=np.ones((1, 4)))])
        path.write_bytes(pickle.dumps(Harm(trace) if harm else content))
    else:
        made = f'!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.PosixPath ["{trace}"]]'
        path.write_text(
            f"metainfo: {made if harm else {}}\ndata_list: [{{img_path: a.png, size: !!python/tuple [1, 2]}}]\n"
        )
    return path


@pytest.mark.parametrize("name", ["a.pkl", "a.yml"])
def test_annotations_are_data(tmp_path: Path, name: str) -> None:
    trace = tmp_path / "trace"
    good = BaseDataset(ann_file=str(annotations(tmp_path, name, trace, harm=False)))
    assert good[0]["img_path"] == "a.png"
    with pytest.raises(pickle.UnpicklingError):
        BaseDataset(ann_file=str(annotations(tmp_path, name, trace, harm=True)))
    assert not trace.exists()
    if name.endswith(".pkl"):
        load(str(tmp_path / name))  # the user's own call is as it was, and the trap works
        assert trace.exists()


def test_a_yaml_that_refers_to_itself_again_and_again(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 20))]
    (tmp_path / "a.yml").write_text("\n".join(lines))
    with pytest.raises(pickle.UnpicklingError, match="again and again"):
        BaseDataset(ann_file=str(tmp_path / "a.yml"))


TEXTS: dict[str, Callable[[Path], str]] = {
    "a call": lambda trace: f"import pathlib\npathlib.Path({str(trace)!r}).touch()\n",
    "a call in a value": lambda trace: f"a = __import__('pathlib').Path({str(trace)!r}).touch()\n",
    "a base": lambda trace: f"_base_ = {str(trace.with_suffix('.py'))!r}\na = [x for x in ()]\n",
    "an import": lambda trace: "custom_imports = dict(imports=['antigravity'])\n",
    "any object as a type": lambda trace: f"model = dict(type='os.system', command='touch {trace}')\n",
    "a function of MMEngine as a type": lambda trace: "model = dict(type='mmengine.load', file='a.pkl')\n",
    "a module of a package as a type": lambda trace: (
        "model = dict(type='mmdet.utils.misc.os.system', command='true')\n"
    ),
    "a type that mmcv evaluates": lambda trace: f"test_cfg = dict(nms=dict(type='open({str(trace)!r}, 1)'))\n",
    "a runner as a model": lambda trace: f"model = dict(type='mmengine.runner.Runner', work_dir={str(trace)!r})\n",
    "a built-in as a type": lambda trace: "model = dict(nms=dict(type='breakpoint'))\n",
    "a module as a type": lambda trace: "model = dict(type='antigravity')\n",
    "a list as a type": lambda trace: "model = dict(type=['ResNet'])\n",
    "no names of modules": lambda trace: "custom_imports = dict(imports=[['os']])\n",
    "no dict of imports": lambda trace: "custom_imports = 3\n",
    "a scope": lambda trace: "model = dict(type='ResNet', _scope_='antigravity')\n",
    "a formatted text": lambda trace: "a = f'{open}'\n",
    "deep nesting": lambda trace: "a = " + "[" * 10_000,
    "a long chain": lambda trace: "a = " + "-" * 100_000 + "1",
    "no text": lambda trace: 3,  # type: ignore[return-value, dict-item]
}


@pytest.mark.parametrize("kind", TEXTS)
def test_the_config_in_a_checkpoint_is_not_run(tmp_path: Path, kind: str) -> None:
    """As DetInferencer(weights=FILE) reads it."""
    read = module_of_openmmlab(
        "from mmengine.config import Config\ndef read(text): return Config.fromstring(text, file_format='.py')"
    )
    read.__dict__["__name__"] = "mmengine.infer.infer"
    trace = tmp_path / "trace"
    with pytest.raises(ValueError, match="the checkpoint: its config"):
        read.read(TEXTS[kind](trace))
    assert not trace.exists()
    assert "antigravity" not in sys.modules


def test_lazy_configs_and_visualizers_are_read_without_their_places() -> None:
    text = """
model = dict(type='mmdet.models.backbones.resnet.ResNet', norm_cfg=dict(type='torch.nn.modules.batchnorm.BatchNorm2d'))
default_hooks = dict(timer=dict(type='mmengine.hooks.iter_timer_hook.IterTimerHook'))
visualizer = dict(type='DetLocalVisualizer', save_dir='/any', vis_backends=[dict(type='LocalVisBackend')])
"""
    read = module_of_openmmlab("from mmengine.config import Config\nread = lambda text: Config.fromstring(text, '.py')")
    read.__dict__["__name__"] = "mmengine.infer.infer"
    cfg = read.read(text)
    assert cfg.model.type == "mmdet.models.backbones.resnet.ResNet"
    assert cfg.visualizer == dict(type="DetLocalVisualizer", vis_backends=[])


def test_a_users_own_call_runs_a_config() -> None:
    assert Config.fromstring("a = [x for x in (1, 2)]", ".py").a == [1, 2]
