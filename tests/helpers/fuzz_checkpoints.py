"""Mutated files of weights: each is converted, or refused in one sentence.

Run more of them with `python tests/helpers/fuzz_checkpoints.py 10000`.
"""

import io
import random
import re
import struct
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
from fuzzing import limited, main, with_costs
from safetensors.torch import save
from torch import Tensor

from sa_mmdet.checkpoints import convert

_ANCHORS = ("conv1.weight", "layer1.0.sa.cweight", "state_dict", "module.", "numel", "storage", "OrderedDict", "shape")


def small_weights() -> dict[str, Tensor]:
    """A shuffle-attention ResNet-50's names with tensors of a few numbers: what is mutated is the structure."""
    state = {f"layer{s}.{b}.conv{i}.weight": torch.ones(2, 2, 1, 1) for s, n in ((1, 3), (2, 4), (3, 6), (4, 3))
             for b in range(n) for i in (1, 2, 3)}  # fmt: skip
    state |= {f"layer{s}.0.sa.{name}": torch.ones(1, 1, 1, 1) for s in range(1, 5) for name in ("cweight", "cbias")}
    state |= {"conv1.weight": torch.ones(64, 3, 7, 7), "bn1.weight": torch.ones(64)}
    return {f"module.{key}": value for key, value in state.items()}


def originals() -> list[bytes]:
    state = small_weights()
    forms = []
    for zipped in (True, False):
        buffer = io.BytesIO()
        torch.save(dict(state_dict=state, epoch=3, arch="x"), buffer, _use_new_zipfile_serialization=zipped)
        forms.append(buffer.getvalue())
    return [*forms, save(state, metadata={"sa_mmdet": "{}"})]


def mutated(source: bytes, rng: random.Random) -> bytes:
    data = bytearray(source)
    for _ in range(rng.choice((1, 1, 2, 5, 30))):
        if not data:
            break
        at = rng.randrange(len(data))
        if rng.random() < 0.5:  # where the structure is: names, the beginning, the end
            anchor = rng.choice(_ANCHORS).encode()
            found = [match.start() for match in re.finditer(re.escape(anchor), bytes(data))]
            at = rng.choice(
                [*found, rng.randrange(min(256, len(data))), len(data) - 1 - rng.randrange(min(256, len(data)))]
            )
        kind = rng.randrange(8)
        if kind == 0:
            data[at] = rng.randrange(256)
        elif kind == 1:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            del data[at : at + rng.randrange(1, 64)]
        elif kind == 4:
            data[at:at] = rng.randbytes(rng.randrange(1, 64))
        elif kind == 5:
            begin = rng.randrange(len(data))
            data[at:at] = data[begin : begin + rng.randrange(1, 512)]
        elif kind == 6:
            data[at : at + 8] = struct.pack("<q", rng.choice((0, -1, 2**31, 2**40, 2**62, 2**63 - 1)))
        else:
            data[at : at + 1] = rng.choice((b"}", b"{", b'"', b"\x80", b".", b"R", b"c", b"\x00", b"PK\x03\x04"))
    return bytes(data)


def fuzz(count: int, seed: int = 0) -> Counter:
    """Convert ``count`` mutated files and count the answers by kind. Anything but ValueError is a failure."""
    rng, answers, slowest = random.Random(seed), Counter[str](), 0.0
    sources = originals()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(count):
            path = Path(folder) / f"file{rng.choice(('.pth', '.pth.tar', '.safetensors'))}"
            path.write_bytes(mutated(rng.choice(sources), rng))
            begin = time.process_time()
            try:
                with limited():
                    convert(path)
                answers["converted"] += 1
            except ValueError as error:
                message = str(error)
                assert message.startswith(f"{path}: "), message
                assert "\n" not in message, message
                answers[re.sub(r"[^a-z ]+.*", "", message.removeprefix(f"{path}: "))[:40]] += 1
            except BaseException:
                kept = Path(tempfile.gettempdir()) / f"fuzz_{seed}_{number}"
                kept.write_bytes(path.read_bytes())
                print(f"kept as {kept}", file=sys.stderr)
                raise
            slowest = max(slowest, time.process_time() - begin)
            path.unlink()
    return with_costs(answers, slowest)


if __name__ == "__main__":
    main(fuzz)
