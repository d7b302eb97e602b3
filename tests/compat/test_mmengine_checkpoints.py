import builtins
import os
import pickle
import shutil
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.runner import checkpoint
from mmengine.runner.checkpoint import load_checkpoint

from sa_mmdet.compat import load_tensors, mmengine_checkpoints, old_torch


def saved(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


@pytest.fixture(params=["PyTorch's strict loader", "the one for PyTorch before 2.6"])
def loader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both strict ways of loading, whatever the PyTorch; the second loads on every one."""
    if request.param.startswith("PyTorch") and old_torch.LOADS_ANYTHING:
        pytest.skip("this PyTorch's cannot be told of names")
    if not request.param.startswith("PyTorch") and not old_torch.LOADS_ANYTHING:
        monkeypatch.setattr(old_torch, "LOADS_ANYTHING", True)
        monkeypatch.setattr(checkpoint, "torch", torch)
        monkeypatch.setattr(checkpoint, "load_url", checkpoint.load_url)
        monkeypatch.setattr(torch.serialization, "_weights_only_unpickler", None)
        monkeypatch.setattr(old_torch, "ADMITTED", {})
        mmengine_checkpoints.admit_training_history()
        mmengine_checkpoints.load_strictly()
    return request.param


@pytest.mark.usefixtures("loader")
@pytest.mark.parametrize("zipped", [True, False])
def test_a_training_history_loads_and_is_what_it_was(tmp_path: Path, zipped: bool) -> None:
    hub = MessageHub.get_instance(str(tmp_path))
    for value in (3.0, np.float64(2.0), torch.tensor(1.0), 4):
        hub.update_scalar("train/loss", value)
    hub.update_info("best", np.float32(0.5))
    content = dict(message_hub=hub.state_dict(), seen=np.int64(7), weights=torch.nn.Conv2d(2, 3, 1).state_dict())
    plain = dict(milestones=Counter([8, 11]), classes={"a"}, kind=torch.bool, device=torch.device("cpu"))
    torch.save(content | dict(plain=plain), tmp_path / "epoch_1.pth", _use_new_zipfile_serialization=zipped)
    loaded = checkpoint.load_from_local(str(tmp_path / "epoch_1.pth"), "cpu")
    assert loaded["plain"] == plain
    assert type(loaded["weights"]) is OrderedDict
    assert torch.equal(loaded["weights"]["weight"], content["weights"]["weight"])
    buffer = loaded["message_hub"]["log_scalars"]["train/loss"]
    assert type(buffer) is HistoryBuffer
    assert buffer.data[0].tolist() == [3.0, 2.0, 1.0, 4.0]
    assert [buffer.statistics(name) for name in ("current", "min", "max", "mean")] == [4.0, 1.0, 4.0, 2.5]
    assert loaded["seen"] == 7
    assert isinstance(loaded["seen"], np.int64)
    # It can be saved and loaded once more, as a resumed run does.
    again = checkpoint.load_from_local(str(saved(tmp_path / "epoch_2.pth", loaded)), "cpu")
    assert again["message_hub"]["log_scalars"]["train/loss"].statistics("mean") == 2.5


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function: Any, *arguments: Any):
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


class Empty:
    """Pickles as an array of more bytes than there are."""

    def __reduce__(self) -> Any:
        return np.array([]).__reduce__()[0], (np.ndarray, (10**15,), b"b")


def with_state(**state: object) -> HistoryBuffer:
    buffer = HistoryBuffer([1.0], [1])
    buffer.__dict__.update(state)
    return buffer


@pytest.mark.usefixtures("loader")
@pytest.mark.parametrize(
    "smuggled",
    [
        lambda: Call(os.system, "touch smuggled"),
        lambda: Call(exec, "open('smuggled', 'w')"),
        lambda: Call(getattr, HistoryBuffer, "__init__"),
        lambda: Call(getattr, HistoryBuffer, "register_statistics"),
        lambda: Call(getattr, torch.Tensor, "numpy"),
        lambda: Call(np.dtype, "O"),
        lambda: Call(np.dtype, [("a", "f8")]),
        lambda: np.array([{"an": "object"}], dtype=object),
        lambda: np.array(["text"]),
        Empty,
        lambda: with_state(further=1),
        lambda: with_state(_log_history=[1.0]),
        lambda: Path("a"),
    ],
)
def test_anything_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, smuggled: Callable[[], object]
) -> None:
    monkeypatch.chdir(tmp_path)
    before = dict(HistoryBuffer._statistics_methods)
    saved(tmp_path / "evil.pth", dict(state_dict={}, message_hub=smuggled()))
    with pytest.raises(pickle.UnpicklingError):
        load_checkpoint(torch.nn.Linear(1, 1), "evil.pth")
    assert not Path("smuggled").exists()
    assert HistoryBuffer._statistics_methods == before


def rewrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Change the pickle in what torch.save wrote."""
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in content.items():
            archive.writestr(name, change(data) if name.endswith("data.pkl") else data)


@pytest.mark.usefixtures("loader")
@pytest.mark.parametrize(
    "opcodes",
    [
        b"cpathlib\nPath\n)\x81",  # a new object
        b"(cpathlib\nPath\no",  # the same by Python 2's opcode
        b"(ipathlib\nPath\n",  # and by another one
        b"ctorch\nSize\n]\x85R}K\x01K\x02sb",  # a state for a kind that has none
        b"cbuiltins\ngetattr\nN}U\x01aK\x01s\x86b",  # attributes for a function
        b"ctorch.nn.parameter\nParameter\nN}U\x01aK\x01s\x86b",  # and for a class
        b"cbuiltins\ngetattr\n)\x81",  # an object of a function
        b"]K\x01\x85R",  # a call of a list
        b"\x82\x01",  # an extension
    ],
)
def test_opcodes_that_no_checkpoint_has(tmp_path: Path, opcodes: bytes) -> None:
    rewrite(saved(tmp_path / "evil.pth", {}), lambda pickled: b"\x80\x02" + opcodes + b".")
    with pytest.raises((pickle.UnpicklingError, AttributeError, TypeError)):
        load_tensors(tmp_path / "evil.pth")


@pytest.mark.usefixtures("loader")
def test_addresses_are_loaded_strictly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path / "good.pth", dict(weight=torch.ones(2)))
    saved(tmp_path / "evil.pth", Path("a"))
    asked: list[str] = []

    def download(url: str, path: str, *arguments: Any, **options: Any) -> None:
        asked.append(url)
        shutil.copy(tmp_path / url.rpartition("/")[2], path)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "cache"))
    for _ in range(2):  # the second time from the cache
        assert checkpoint.load_from_http("https://host/path/good.pth")["weight"].sum() == 2
    assert asked == ["https://host/path/good.pth"]
    with pytest.raises(pickle.UnpicklingError):
        checkpoint.load_from_http("https://host/path/evil.pth")


@pytest.mark.usefixtures("loader")
def test_a_program_is_no_checkpoint(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.ReLU()), tmp_path / "program.pth")
    with pytest.raises((pickle.UnpicklingError, RuntimeError), match=r"TorchScript|torch\.jit"):
        load_tensors(tmp_path / "program.pth")


@pytest.mark.usefixtures("loader")
def test_statistics_of_a_file_do_not_reach_the_class(tmp_path: Path) -> None:
    saved(tmp_path / "evil.pth", with_state())

    def under_the_name_of_the_mean(pickled: bytes) -> bytes:
        assert pickled.count(b"\x04\x00\x00\x00mean") == 2
        return pickled.replace(b"\x04\x00\x00\x00mean", b"\x04\x00\x00\x00evil", 1)

    rewrite(tmp_path / "evil.pth", under_the_name_of_the_mean)
    load_tensors(tmp_path / "evil.pth")
    assert "evil" not in HistoryBuffer._statistics_methods


def test_nothing_that_reaches_further_is_admitted_as_itself(loader: str) -> None:
    entries = old_torch.ADMITTED.values() if old_torch.LOADS_ANYTHING else torch.serialization.get_safe_globals()
    admitted = {entry[0] if isinstance(entry, tuple) else entry for entry in entries}
    assert not admitted & {builtins.getattr, np.dtype, HistoryBuffer}


def test_torchvision_names_need_no_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(mmengine_checkpoints, "load_from_http", lambda url, map_location: asked.append(url))
    mmengine_checkpoints.load_from_torchvision("torchvision://resnet50")
    assert asked[0].endswith("resnet50-0676ba61.pth")
    with pytest.raises(ValueError, match="torchvision://resnet51"):
        mmengine_checkpoints.load_from_torchvision("torchvision://resnet51")
