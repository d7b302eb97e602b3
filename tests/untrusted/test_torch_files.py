"""What torch.save writes is read as torch.load reads it; everything else is refused in a sentence, and never run."""

import io
import os
import pickle
import time
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hand_made
import numpy as np
import pytest
import torch
from hand_made import Call, Memory, Name, Raw, array, checkpoint, dtype, history, tensor
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.structures import InstanceData

from sa_mmdet.untrusted import RefusedFileError, read_pickle, read_torch


def content() -> dict[str, Any]:
    """All that checkpoints hold, and some of what they could."""
    model: Any = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(1, 3, 8, 8)).sum().backward()
    optimizer.step()
    parameter = torch.nn.Parameter(torch.ones(3))
    row = torch.arange(10.0)
    return dict(
        model=model.state_dict(),
        optimizer=optimizer.state_dict(),
        arrays=[
            np.arange(6).reshape(2, 3).T,
            np.arange(3, dtype=">f8"),
            np.zeros((0, 4)),
            np.array(3.0),
            np.ones(2, bool),
        ],
        numbers=[np.float32(3), np.int64(-2), 2**63, -5, 1j, None, True, float("inf")],
        texts=["", "ü\u2028", b"abc", b"", bytearray(b"xy")],
        containers=[{1, 2}, frozenset({1}), Counter([1, 1]), OrderedDict(a=1), (1, ("a",)), {(1, 2): 3, 1: 2, None: 0}],
        torch=[torch.device("cuda:0"), torch.bfloat16, torch.Size([1, 2])],
        tensors=[parameter, row, row[2:5], torch.ones(2).bfloat16(), torch.ones(2, dtype=torch.complex64)],
        shapes=[torch.ones(1).expand(5), torch.tensor(3), torch.empty(0, 3), torch.ones(2, 3).t()],
    )


def same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other) and (one.stride(), one.dtype, one.requires_grad) == (
            other.stride(),
            other.dtype,
            other.requires_grad,
        )
    if isinstance(one, np.ndarray):
        return (one.dtype == other.dtype.newbyteorder("=") and np.array_equal(one, other)) or np.array_equal(one, other)
    if isinstance(one, dict):
        metadata = [getattr(each, "_metadata", None) for each in (one, other)]
        return (
            list(one) == list(other) and metadata[0] == metadata[1] and all(same(one[key], other[key]) for key in one)
        )
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_what_torch_saves_is_read(tmp_path: Path, zipped: bool, protocol: int) -> None:
    saved = content()
    path = tmp_path / "a.pth"
    torch.save(saved, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    loaded = read_torch(path, "cpu")
    assert same(saved, loaded)
    row, part = loaded["tensors"][1:3]
    assert part.data_ptr() == row.data_ptr() + 8  # they share their memory, as they did
    with path.open("rb") as file:
        assert same(saved["model"], read_torch(file)["model"])
    again = io.BytesIO()
    torch.save(loaded, again)
    again.seek(0)
    assert same(loaded, read_torch(again))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_training_history_is_read(tmp_path: Path, zipped: bool) -> None:
    hub = MessageHub.get_instance(str(tmp_path))
    for value in (3.0, np.float64(2.0), torch.tensor(1.0), 4):
        hub.update_scalar("train/loss", value)
    hub.update_info("best", np.float32(0.5))
    torch.save(dict(message_hub=hub.state_dict()), tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    loaded = read_torch(tmp_path / "a.pth")
    buffer = loaded["message_hub"]["log_scalars"]["train/loss"]
    assert type(buffer) is HistoryBuffer
    assert buffer.data[0].tolist() == [3.0, 2.0, 1.0, 4.0]
    assert [buffer.statistics(name) for name in ("current", "min", "max", "mean")] == [4.0, 1.0, 4.0, 2.5]
    assert loaded["message_hub"]["runtime_info"]["best"] == 0.5


def test_locations_are_torchs(tmp_path: Path) -> None:
    torch.save(dict(a=torch.ones(2)), tmp_path / "a.pth")
    asked = []

    def put(memory: Any, location: str) -> Any:
        asked.append(location)
        return memory

    for where in (None, "cpu", torch.device("cpu"), {"cpu": "cpu"}, put, lambda memory, location: None):
        assert read_torch(tmp_path / "a.pth", where)["a"].device.type == "cpu"
    assert asked == ["cpu"]


class Smuggled:
    """Pickles as a call of a function."""

    def __init__(self, function: Any, *arguments: Any):
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def with_state(**state: object) -> HistoryBuffer:
    buffer = HistoryBuffer([1.0], [1])
    buffer.__dict__.update(state)
    return buffer


@pytest.mark.parametrize(
    "smuggled",
    [
        lambda: Smuggled(os.system, "touch smuggled"),
        lambda: Smuggled(exec, "open('smuggled', 'w')"),
        lambda: Smuggled(getattr, HistoryBuffer, "__init__"),
        lambda: Smuggled(getattr, HistoryBuffer, "register_statistics"),
        lambda: Smuggled(getattr, torch.Tensor, "numpy"),
        lambda: Smuggled(np.dtype, "O"),
        lambda: Smuggled(np.dtype, [("a", "f8")]),
        lambda: np.array([{"an": "object"}], dtype=object),
        lambda: np.array(["text"]),
        lambda: with_state(further=1),
        lambda: with_state(_log_history=[1.0]),
        lambda: Path("a"),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_anything_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, smuggled: Callable[[], object], zipped: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    before = dict(HistoryBuffer()._statistics_methods)
    torch.save(dict(state_dict={}, hub=smuggled()), "evil.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(RefusedFileError, match=r"^evil\.pth: holds more than weights .* was not run"):
        read_torch("evil.pth")
    assert not Path("smuggled").exists()
    assert HistoryBuffer._statistics_methods == before


INTERFACE = Call(
    "collections.OrderedDict",
    state={"__array_interface__": dict(shape=(8,), typestr="|u1", data=(4096, True), version=3)},
)
NUMBERS = array(dtype("f8"), (1,), bytes(8))
HARMFUL: dict[str, Any] = {
    "memory at any address, as a history": history(INTERFACE),
    "memory at any address, as a called history": Call("mmengine.logging.history_buffer.HistoryBuffer", INTERFACE, []),
    "an array of an object that claims to be one": array(INTERFACE, (1,), bytes(8)),
    "a type that makes 8 bytes a gigabyte": array(dtype(">f8", 3, ">", None, None, None, 2**30, -1, 0), (1,), bytes(8)),
    "a type with fields": array(dtype("f8", 3, "|", None, ("a",), {"a": (dtype("f8"), 0)}, 8, 1, 16), (1,), bytes(8)),
    "an array of more than its bytes": array(dtype("f8"), (10**12,), bytes(8)),
    "an array of negative size": array(dtype("f8"), (-1,), bytes(8)),
    "another empty array": Call("numpy.core.multiarray._reconstruct", Name("numpy.ndarray"), (10**15,), b"b"),
    "an attribute that is set": Call("torch._tensor._rebuild_from_type_v2", Name("torch._utils._rebuild_tensor_v2"),
                                     Name("torch.distributed.tensor.DTensor"), (), {"real": 1}),
    "a state for a tensor": Call("torch._utils._rebuild_tensor_v2", *tensor(Memory("0", 2), 2).arguments,
                                 state={"real": 1}),
    "a tensor beyond its memory": tensor(Memory("0", 2), 3),
    "a tensor that begins before its memory": tensor(Memory("0", 2), 1, offset=-1),
    "a tensor that begins after its memory": tensor(Memory("0", 2), 0, offset=10**9),
    "strides beyond its memory": tensor(Memory("0", 2), 2, strides=(10**9,)),
    "negative strides": tensor(Memory("0", 2), 2, strides=(-1,)),
    "sizes that overflow": tensor(Memory("0", 2), 2**61, 2**61, strides=(0, 0)),
    "a tensor of few repeated numbers": tensor(Memory("0", 2), 2**40, strides=(0,)),
    "memory that claims more than the file holds": tensor(Memory("0", 2**40), 2),
    "memory that is not there": tensor(Memory("1", 2), 2),
    "memory of an unknown kind": tensor(Memory("0", 2, "QInt8Storage"), 2),
    "hooks": Call("torch._utils._rebuild_tensor_v2", Memory("0", 2), 0, (2,), (1,), False, {1: Name("os.system")}),
    "a sparse tensor": Call("torch._utils._rebuild_sparse_tensor", 1, ()),
    "attributes of an ordered dict": Call("collections.OrderedDict", state={"get": 1}),
    "versions that are lists": Call("collections.OrderedDict", state={"_metadata": {"a": [1]}}),
    "a list as a key": Raw(b"}](K\x01es"),
    "a tensor as a key": Raw(b"}" + hand_made.opcodes(tensor(Memory("0", 2), 2)) + b"K\x01s"),
    "a new path": Raw(b"cpathlib\nPath\n)\x81"),
    "an object by Python 2's opcode": Raw(b"(cpathlib\nPath\no"),
    "an object by another one": Raw(b"(ipathlib\nPath\n"),
    "a state for a size": Raw(b"ctorch\nSize\n]\x85R}K\x01K\x02sb"),
    "attributes for a function": Raw(b"cbuiltins\ngetattr\nN}U\x01aK\x01s\x86b"),
    "attributes for a class": Raw(b"ctorch.nn.parameter\nParameter\nN}U\x01aK\x01s\x86b"),
    "an object of a function": Raw(b"cbuiltins\ngetattr\n)\x81"),
    "a call of a list": Raw(b"]K\x01\x85R"),
    "an extension": Raw(b"\x82\x01"),
    "a function as a value": Name("os.system"),
    "a class as a value": Name("collections.OrderedDict"),
    "an integer of 400 digits": Raw(b"\x8a\xa7" + bytes(166) + b"\x01"),
    "a text without an end": Raw(b"X\xff\xff\xff\xffabc"),
    "nothing": Raw(b""),
}  # fmt: skip


@pytest.mark.parametrize("harm", HARMFUL)
def test_what_no_checkpoint_holds_is_refused_before_it_is_touched(tmp_path: Path, harm: str) -> None:
    path = checkpoint(tmp_path / "evil.pth", [HARMFUL[harm], 1] if harm != "nothing" else Raw(b""), {"0": bytes(8)})
    with pytest.raises(RefusedFileError, match=r"evil\.pth: \w+") as caught:
        read_torch(path)
    assert "\n" not in str(caught.value)


def test_the_same_without_harm_is_read(tmp_path: Path) -> None:
    value = [
        history(NUMBERS),
        tensor(Memory("0", 2), 2),
        array(dtype("f8", 3, ">", None, None, None, -1, -1, 0), (1,), bytes(8)),
    ]
    found = read_torch(checkpoint(tmp_path / "good.pth", value, {"0": bytes(8)}))
    assert found[0].data[0].tolist() == [0.0]
    assert found[1].tolist() == [0.0, 0.0]


def test_attributes_that_a_file_gives_to_tensors_are_left_out(tmp_path: Path) -> None:
    """PyTorch sets them: ``real`` would write into the tensor, wherever its memory is."""
    plain, other = (tensor(Memory(key, 2), 2) for key in "01")
    rebuild = (Name("torch._utils._rebuild_tensor_v2"), Name("torch.Tensor"), plain.arguments)
    value = Call("torch._tensor._rebuild_from_type_v2", *rebuild, {"real": other, "mine": 1})
    found = read_torch(checkpoint(tmp_path / "a.pth", value, {"0": bytes(8), "1": b"\x01" * 8}))
    assert found.tolist() == [0.0, 0.0]
    assert not hasattr(found, "mine")


def nested(levels: int) -> Raw:
    """A list that holds the list before ten times, and so on."""
    made = b"]q\x00"
    for level in range(levels):
        made += b"](" + b"h" + bytes([level]) + (b"h" + bytes([level])) * 9 + b"e" + b"q" + bytes([level + 1])
    return Raw(made)


def wide(count: int) -> Raw:
    """A dict of dicts of dicts, each of which is one and the same."""
    made = b"}"
    for level in range(3):
        keys = b"".join(b"J" + key.to_bytes(4, "little") + b"h" + bytes([level]) for key in range(count))
        made += b"q" + bytes([level]) + b"}(" + keys + b"u"
    return Raw(made)


BOMBS: dict[str, tuple[Any, str]] = {
    "nested references": (nested(50), "refers to its own parts again and again"),
    "wide references": (wide(7000), "refers to its own parts again and again"),
    "a list in itself": (Raw(b"]q\x00h\x00a"), "contains itself"),
    "deep lists": (Raw(b"]" * 100_000 + b"a" * 99_999), "nested more than 100 levels"),
    "deep tuples as a key": (Raw(b"})" + b"\x85" * 100_000 + b"K\x01s"), "nested more than 100 levels"),
    "keys that collide": (
        Raw(
            b"}("
            + b"".join(b"\x8a\x0a" + (n * (2**61 - 1)).to_bytes(10, "little") + b"N" for n in range(1, 60_000))
            + b"u"
        ),
        "integers as keys",
    ),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_small_files_do_not_become_large_work(tmp_path: Path, bomb: str) -> None:
    value, message = BOMBS[bomb]
    path = checkpoint(tmp_path / "bomb.pth", value)
    begin = time.monotonic()
    with pytest.raises(RefusedFileError, match=message):
        read_torch(path)
    assert time.monotonic() - begin < 10


def test_compressed_memory_is_limited(tmp_path: Path) -> None:
    size = 1 << 28
    path = checkpoint(
        tmp_path / "a.pth", tensor(Memory("0", size // 4), size // 4), {"0": bytes(size)}, zipfile.ZIP_DEFLATED
    )
    assert path.stat().st_size < 1 << 20
    with pytest.raises(RefusedFileError, match="inflates to more than 8 times its size"):
        read_torch(path)
    small = checkpoint(tmp_path / "b.pth", tensor(Memory("0", 2), 2), {"0": bytes(8)}, zipfile.ZIP_DEFLATED)
    assert read_torch(small).tolist() == [0.0, 0.0]


def damaged(path: Path, kind: str) -> None:
    data = path.read_bytes()
    if kind == "cut":
        path.write_bytes(data[:-100])
    elif kind == "a bit":
        at = data.index(b"\x00\x00\x80\x3f" * 4)
        path.write_bytes(data[:at] + b"\x01" + data[at + 1 :])
    elif kind == "empty archive":
        with zipfile.ZipFile(path, "w"):
            pass
    elif kind == "an archive of something else":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a/b", "c")


@pytest.mark.parametrize("kind", ["cut", "a bit", "empty archive", "an archive of something else"])
def test_damage_is_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.pth"
    torch.save(dict(a=torch.ones(100)), path)
    damaged(path, kind)
    with pytest.raises(RefusedFileError, match=r"a\.pth: "):
        read_torch(path)


def test_a_program_is_refused(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.ReLU()), tmp_path / "program.pth")
    with pytest.raises(RefusedFileError, match=r"program\.pth: is a TorchScript program"):
        read_torch(tmp_path / "program.pth")


class Mine:
    """A class that the user allows."""

    def __init__(self) -> None:
        self.value = 3


@pytest.mark.skipif(not hasattr(torch.serialization, "safe_globals"), reason="came with PyTorch 2.5")
def test_what_the_user_allows_is_the_users(tmp_path: Path) -> None:
    torch.save(dict(mine=Mine()), tmp_path / "a.pth")
    with pytest.raises(RefusedFileError, match="Mine"):
        read_torch(tmp_path / "a.pth")
    with torch.serialization.safe_globals([Mine]):
        assert read_torch(tmp_path / "a.pth")["mine"].value == 3


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_plain_pickles_hold_arrays_tensors_and_instances(tmp_path: Path, protocol: int) -> None:
    proposals = InstanceData(metainfo=dict(name="x"), bboxes=torch.ones(2, 4), scores=torch.zeros(2))
    saved: dict[str, Any] = dict(
        boxes=[np.ones((2, 4), np.float32)], tensor=torch.arange(3.0), number=np.float64(2), proposals=proposals
    )
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(saved, protocol))
    found = read_pickle(tmp_path / "a.pkl")
    assert np.array_equal(found["boxes"][0], saved["boxes"][0])
    assert found["tensor"].tolist() == [0.0, 1.0, 2.0]
    assert found["proposals"].bboxes.shape == (2, 4)
    assert found["proposals"].name == "x"
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(Smuggled(os.system, "touch smuggled"), protocol))
    with pytest.raises(RefusedFileError, match=r"(posix|os)\.system"):
        read_pickle(tmp_path / "a.pkl")
