"""Mutated annotations, results and work directories: each is read, or refused in one sentence.

Run more of them with `python tests/helpers/fuzz_files.py 10000`.
"""

import copy
import json
import random
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fuzz_checkpoints import mutated
from fuzzing import main, with_costs
from pycocotools import mask as coder
from pycocotools.coco import COCO

from sa_mmdet.coco_format import load_annotations, load_results, tasks_of
from sa_mmdet.evaluation import evaluate, read_run

_ODD: list[Any] = [
    None, True, -1, 0, 1, 3, 2.5, 10**9, 2**70, -1e300, float("nan"), float("inf"), "", "0", "a\x00b",
    "../../etc/passwd", [], [[]], {}, [1, 2], [0, 0, 5, 5], [0, 0, float("nan"), 1], [[0, 0, 9, 0, 9, 9]], [[1, 2, 3]],
    dict(size=[40, 30], counts="zz"),
]  # fmt: skip
_CONFIG = [
    "model = dict(type='RetinaNet')",
    "model = dict(model, backbone=dict(type='SAResNet', depth=50))",
    "model['backbone'].update(type='AttentionResNet', attention=[None, dict(type='CBAM')])",
    "model['backbone'].update(attention=3)",
    "test_evaluator = dict(ann_file='a.json')",
    "test_evaluator = [test_evaluator]",
]
_SECONDS = 20  # after which an input counts as a hang


def annotations() -> dict[str, Any]:
    objects = [
        dict(id=n + 1, image_id=n % 4, category_id=1 + n % 2, bbox=[n, 2, 10, 8], area=80, iscrowd=int(n == 5),
             segmentation=[[n, 2, n + 10, 2, n + 10, 10, n, 10]])
        for n in range(8)
    ]  # fmt: skip
    objects[5]["segmentation"] = dict(size=[40, 30], counts=[100, 50, 1050])
    images = [dict(id=n, width=30, height=40, file_name=f"{n}.jpg") for n in range(4)]
    return dict(images=images, annotations=objects, categories=[dict(id=1, name="a"), dict(id=2, name="b")])


def results(coco: COCO) -> list[dict[str, Any]]:
    found = []
    for entry in coco.anns.values():
        code = coder.encode(coco.annToMask(entry))
        mask = dict(size=[40, 30], counts=code["counts"].decode())
        found.append(
            dict(
                image_id=entry["image_id"],
                category_id=entry["category_id"],
                score=0.5,
                bbox=entry["bbox"],
                segmentation=mask,
            )
        )
    return found


def log() -> str:
    lines = [dict(loss=1.0 / step, step=step, lr=0.1) for step in range(1, 9)]
    return "\n".join(json.dumps(line) for line in [*lines, {"coco/bbox_mAP": 0.5, "step": 1}])


def changed(content: Any, rng: random.Random) -> Any:
    """The content with some of its nodes replaced, removed or doubled."""
    content = copy.deepcopy(content)
    for _ in range(rng.choice((1, 1, 2, 4))):
        node: Any = content
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            if not keys:
                break
            key = rng.choice(keys)
            if isinstance(node[key], dict | list) and node[key] and rng.random() < 0.8:
                node = node[key]
                continue
            kind = rng.randrange(4)
            if kind == 0:
                del node[key]
            elif kind == 1 and isinstance(node, list):
                node.append(copy.deepcopy(node[key]))
            else:
                node[key] = copy.deepcopy(rng.choice(_ODD))
            break
    return content


def damaged(content: Any, rng: random.Random) -> bytes:
    if rng.random() < 0.7:
        return json.dumps(changed(content, rng)).encode()
    return mutated(json.dumps(content).encode(), rng)


def fuzz(count: int, seed: int = 0) -> Counter:
    """Read ``count`` damaged files and count the answers. A hang, and anything but ValueError, is a failure."""
    rng, answers, slowest = random.Random(seed), Counter[str](), 0.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole = folder / "whole.json"
        whole.write_text(json.dumps(annotations()))
        coco = load_annotations(whole)
        found = results(coco)
        work_dir = folder / "run"
        (work_dir / "1" / "vis_data").mkdir(parents=True)
        path = folder / "file.json"

        def judge(truth: COCO, entries: list[dict[str, Any]]) -> None:
            for task in tasks_of(entries):
                if task == "bbox" or all(entry.get("segmentation") for entry in truth.anns.values()):
                    evaluate(truth, entries, task)

        def read_annotations() -> None:
            path.write_bytes(damaged(annotations(), rng))
            truth = load_annotations(path)
            judge(
                truth,
                [entry for entry in found if entry["image_id"] in truth.imgs and entry["category_id"] in truth.cats],
            )

        def read_results() -> None:
            path.write_bytes(damaged(found, rng))
            judge(coco, load_results(path, coco))

        def read_work_dir() -> None:
            config, scalars = work_dir / "1" / "vis_data" / "config.py", work_dir / "1" / "vis_data" / "scalars.json"
            config.write_text("\n".join(line for line in _CONFIG if rng.random() < 0.9))
            scalars.write_bytes(mutated(log().encode(), rng))
            run = read_run(work_dir)
            _ = run.variant, run.annotations, run.on_coco, run.results("bbox")

        readers: list[Callable[[], None]] = [read_annotations, read_results, read_work_dir]
        for _ in range(count):
            reader = rng.choice(readers)
            begin = time.monotonic()
            signal.alarm(_SECONDS)
            try:
                reader()
                answers[f"{reader.__name__}: read"] += 1
            except ValueError as error:
                message = str(error)
                assert message.startswith(name), message
                answers[f"{reader.__name__}: refused: " + re.sub(r"[^a-z ]+", "", message.removeprefix(name))[:40]] += 1
            except BaseException:
                print(path.read_bytes() if reader is not read_work_dir else list(work_dir.rglob("*")), file=sys.stderr)
                raise
            finally:
                signal.alarm(0)
            slowest = max(slowest, time.monotonic() - begin)
    return with_costs(answers, slowest)


if __name__ == "__main__":
    main(fuzz)
