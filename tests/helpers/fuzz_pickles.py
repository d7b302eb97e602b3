"""Checkpoints made opcode by opcode, at random: each is read by every tool that takes one, or refused in one sentence.

Run more of them with `python tests/helpers/fuzz_pickles.py 10000`.
"""

import contextlib
import io
import itertools
import logging
import pickle
import pickletools
import random
import re
import shutil
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hand_made
import torch
from fuzzing import limited, main, with_costs
from hand_made import Call, Memory, Name, Raw
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.runner.checkpoint import load_checkpoint

from sa_mmdet.analysis.network import Network
from sa_mmdet.checkpoints import convert, publish
from sa_mmdet.deployment import bake_detector, load

_SIZES = [0, 1, 2, 3, 4, 64, -1, 10**6, 2**31, 2**40, 2**62, 2**63 - 1]
_NAMES = [
    "os.system", "builtins.getattr", "builtins.exec", "builtins.set", "builtins.bytearray", "collections.OrderedDict",
    "collections.Counter", "numpy.dtype", "numpy.ndarray", "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar", "numpy.core.numeric._frombuffer", "_codecs.encode", "torch.Size", "torch.device",
    "torch.float32", "torch.Tensor", "torch.nn.parameter.Parameter", "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3", "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_sparse_tensor", "torch._utils._rebuild_qtensor", "torch._tensor._rebuild_from_type_v2",
    "torch.storage._load_from_bytes", "torch.FloatStorage", "torch.storage.UntypedStorage",
    "mmengine.logging.history_buffer.HistoryBuffer", "mmengine.structures.instance_data.InstanceData",
    "mmengine.config.config.ConfigDict",
]  # fmt: skip
_SCALARS: list[Any] = [
    None, True, False, 0, 1, -1, 7, 2**31, -(2**63), 2**100, 0.5, float("nan"), float("inf"), "", "a", "conv1.weight",
    "latin1", "\x1b[2J", "\n", "f8", ">f8", "O", "cpu", "cuda:9", "meta", "x" * 3000, b"", b"b", bytes(8), bytes(64),
]  # fmt: skip
_KINDS = ["f8", ">f8", "|b1", "i4", "u1", "f2", "O", "V8", "f16", "U4", "M8[s]"]
_OPCODES = [bytes([code]) for code in range(256)]
_MODEL = dict(
    type="RetinaNet",
    data_preprocessor=dict(type="DetDataPreprocessor"),
    backbone=dict(type="SAResNet", depth=18, groups=1, base_channels=4, frozen_stages=-1),
    neck=dict(type="FPN", in_channels=[4, 8, 16, 32], out_channels=4, num_outs=5),
    bbox_head=dict(type="RetinaHead", num_classes=1, in_channels=4, feat_channels=4, stacked_convs=1),
    test_cfg=dict(),
)
_CONFIG = f"""
default_scope = "mmdet"
model = {_MODEL!r}
test_pipeline = [dict(type="LoadImageFromFile"), dict(type="PackDetInputs")]
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
"""


def value(rng: random.Random, depth: int = 0) -> Any:
    """Anything that a pickle can say, most of it close to what checkpoints say."""
    made: list[Callable[[], Any]] = [lambda: rng.choice(_SCALARS)]
    if depth < 6:
        inner = lambda: value(rng, depth + 1)  # noqa: E731
        made += [
            lambda: [inner() for _ in range(rng.randrange(4))],
            lambda: tuple(inner() for _ in range(rng.randrange(4))),
            lambda: {rng.choice(["state_dict", "meta", "message_hub", "a", "b", 1, None]): inner() for _ in range(3)},
            lambda: Name(rng.choice(_NAMES)),
            lambda: Call(rng.choice(_NAMES), *(inner() for _ in range(rng.randrange(5)))),
            lambda: Call(rng.choice(_NAMES), state=inner(), opcode=rng.choice([pickle.REDUCE, pickle.NEWOBJ])),
            lambda: hand_made.history(inner(), inner(), rng.choice([1000, inner()])),
            lambda: hand_made.history(*[array(rng)] * 2),
            lambda: array(rng),
            lambda: tensor(rng),
            lambda: tensor(rng),
            lambda: Raw(b"".join(rng.choices(_OPCODES, k=rng.randrange(1, 6)))),
            lambda: hand_made.dtype(rng.choice(_KINDS), *(inner() for _ in range(8))),
        ]
    return rng.choice(made)()


def array(rng: random.Random) -> Call:
    kind = hand_made.dtype(rng.choice(_KINDS))
    return hand_made.array(kind, tuple(rng.choices(_SIZES, k=rng.randrange(3))), bytes(rng.choice([0, 8, 16])))


def tensor(rng: random.Random) -> Call:
    kind = rng.choice(["FloatStorage", "FloatStorage", "UntypedStorage", "BoolStorage", "LongStorage", "QInt8Storage"])
    memory = Memory(rng.choice("0012x"), rng.choice([64, 64, 16, *_SIZES]), kind)
    shape = rng.choices(_SIZES, k=rng.randrange(4))
    strides = None if rng.random() < 0.5 else tuple(rng.choices(_SIZES, k=len(shape)))
    return hand_made.tensor(memory, *shape, offset=rng.choice([0, 0, *_SIZES]), strides=strides)


def checkpoint_like(rng: random.Random) -> Any:
    """A dict as MMEngine's checkpoints have it, with something in each place."""
    names = ["conv1.weight", "a.b", "\x1b]0;x\x07", "layer1.0.conv1.weight", "é"]
    meta = dict(cfg=value(rng, 4), epoch=value(rng, 5), dataset_meta=value(rng, 3))
    hub = dict(log_scalars={"val/coco/bbox_mAP": hand_made.history(array(rng))}, runtime_info=value(rng, 3))
    whole = dict(state_dict={rng.choice(names): tensor(rng) for _ in range(4)}, meta=meta, message_hub=hub)
    whole[rng.choice(list(whole))] = value(rng, 2)
    return whole


def edited(original: bytes, rng: random.Random) -> bytes:
    """A whole checkpoint whose opcodes were removed, doubled, swapped or replaced."""
    with zipfile.ZipFile(io.BytesIO(original)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    [name] = [name for name in members if name.endswith("data.pkl")]
    pickled = members[name]
    places = [place for _, _, place in pickletools.genops(pickled)] + [len(pickled)]
    codes = [pickled[begin:end] for begin, end in itertools.pairwise(places)]
    for _ in range(rng.choice((1, 1, 2, 5))):
        at, other = rng.randrange(len(codes)), rng.randrange(len(codes))
        kind = rng.randrange(5)
        if kind == 0:
            del codes[at]
        elif kind == 1:
            codes.insert(at, codes[other])
        elif kind == 2:
            codes[at], codes[other] = codes[other], codes[at]
        elif kind == 3:
            codes[at] = rng.choice(_OPCODES)
        else:
            codes[at:at] = [hand_made.opcodes(value(rng, 4))]
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for member, data in members.items():
            archive.writestr(member, b"".join(codes) if member == name else data)
    return made.getvalue()


def fuzz(count: int, seed: int = 0) -> Counter:
    """Read ``count`` checkpoints and count the answers. Anything but ValueError, and OSError, is a failure."""
    rng, answers, slowest = random.Random(seed), Counter[str](), 0.0
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = folder / "mine.py"
        config.write_text(_CONFIG)
        cfg = Config.fromfile(config)
        register_all_modules()
        model = MODELS.build(cfg.model)
        buffer = io.BytesIO()
        torch.save(dict(state_dict=model.state_dict(), meta=dict(cfg=_CONFIG, epoch=1)), buffer)
        readers: dict[str, Callable[[Path], Any]] = {
            "convert": convert,
            "publish": lambda path: publish(path, path.parent / "out" / "x.pth"),
            "publish safetensors": lambda path: publish(path, path.parent / "out" / "x.safetensors"),
            "bake": lambda path: bake_detector(cfg, path),
            "export": lambda path: load(cfg, path),
            "network": lambda path: Network(config, path),
            "MMEngine": lambda path: load_checkpoint(torch.nn.Linear(1, 1), str(path), "cpu"),
        }
        for number in range(count):
            reader = rng.choice(list(readers))
            path = folder / "file.pth"
            (folder / "out").mkdir(exist_ok=True)
            if rng.random() < 0.5:
                path.write_bytes(edited(buffer.getvalue(), rng))
            else:
                content = value(rng) if rng.random() < 0.3 else checkpoint_like(rng)
                method = rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
                hand_made.checkpoint(path, content, {"0": bytes(256), "1": b"\x01" * 64}, method)
            begin = time.process_time()
            try:
                with limited(), contextlib.redirect_stdout(io.StringIO()):  # MMEngine's remarks
                    readers[reader](path)
                answers[f"{reader}: read"] += 1
            except Exception as error:
                message = str(error)
                ours = isinstance(error, ValueError) and message.startswith(name) and message.isprintable()
                if not ours and reader != "MMEngine":  # which looks at plain values in its own way
                    kept = Path(tempfile.gettempdir()) / f"fuzz_pickles_{seed}_{number}.pth"
                    shutil.copy(path, kept)
                    raise AssertionError(f"{reader}: {message}: kept as {kept}") from error
                what = re.sub(r"[^a-z ]+.*", "", message.removeprefix(f"{path}: "))[:40]
                answers[f"{'MMEngine' if reader == 'MMEngine' else 'ours'}: refused: {what}"] += 1
            except BaseException:
                kept = Path(tempfile.gettempdir()) / f"fuzz_pickles_{seed}_{number}.pth"
                shutil.copy(path, kept)
                print(f"{reader}: kept as {kept}", file=sys.stderr)
                raise
            slowest = max(slowest, time.process_time() - begin)
            shutil.rmtree(folder / "out")
    logging.disable(logging.NOTSET)
    return with_costs(answers, slowest)


if __name__ == "__main__":
    main(fuzz)
