"""Mutated annotations, results, configs and work directories: each is read, or refused in one sentence.

Run more of them with `python tests/helpers/fuzz_files.py 10000`.
"""

import copy
import io
import json
import pickle
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml
from fuzz_checkpoints import mutated
from fuzzing import limited, main, with_costs
from mmengine.config import Config
from pycocotools import mask as coder
from pycocotools.coco import COCO

from sa_mmdet.coco_format import load_annotations, load_results, tasks_of
from sa_mmdet.evaluation import Run, evaluate, read_run
from sa_mmdet.evaluation.report import build_report
from sa_mmdet.untrusted import check_buildable, literal_config, read_json, read_pickle, read_yaml

_ODD: list[Any] = [
    None, True, -1, 0, 1, 3, 2.5, 10**9, 2**70, 10**400, -1e300, float("nan"), float("inf"), "", "0", "a\x00b",
    "../../etc/passwd", [], [[]], {}, [1, 2], [0, 0, 5, 5], [0, 0, float("nan"), 1], [[0, 0, 9, 0, 9, 9]], [[1, 2, 3]],
    dict(size=[40, 30], counts="zz"), "\x1b[2J\n", "os.system", "/etc/hosts",
]  # fmt: skip
_MODEL: dict[str, Any] = dict(
    type="RetinaNet",
    backbone=dict(type="SAResNet", depth=18, groups=16, base_channels=16),
    neck=dict(type="FPN", in_channels=[16, 32, 64, 128], out_channels=16, num_outs=5),
    bbox_head=dict(type="RetinaHead", num_classes=2, in_channels=16, feat_channels=16, stacked_convs=1),
)
_SPEED = dict(
    runs=[dict(results=dict(fused=dict(inference=dict(ratio_paired=1.0, min_ms=2.0), memory=dict(ratio=1.0))),
               shape=[480, 640], batch=1)], machine="x", threads=1, torch="2")  # fmt: skip


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


class Readers:
    """Each method writes a damaged file and reads it, as a tool would."""

    def __init__(self, folder: Path, rng: random.Random):
        self.folder, self.rng = folder, rng
        whole = folder / "whole.json"
        whole.write_text(json.dumps(annotations()))
        self.coco = load_annotations(whole)
        self.found = results(self.coco)
        self.work_dir = folder / "run"
        (self.work_dir / "1" / "vis_data").mkdir(parents=True)
        (self.work_dir / "1" / "1.log").write_text("    seed: 7")
        for image in range(4):
            cv2.imwrite(str(folder / f"{image}.jpg"), np.zeros((40, 30, 3), np.uint8))
        self.config = Config(self.settings()).pretty_text

    def settings(self) -> dict[str, Any]:
        dataset = dict(data_root=str(self.folder), data_prefix=dict(img=""))
        evaluator = dict(type="CocoMetric", ann_file=str(self.folder / "whole.json"))
        return dict(model=_MODEL, test_dataloader=dict(dataset=dataset), test_evaluator=evaluator)

    def file(self, content: Any, name: str = "file.json") -> Path:
        path = self.folder / name
        path.write_bytes(content if isinstance(content, bytes) else damaged(content, self.rng))
        return path

    def annotations(self) -> None:
        truth = load_annotations(self.file(annotations()))
        known = [
            entry for entry in self.found if entry["image_id"] in truth.imgs and entry["category_id"] in truth.cats
        ]
        judge(truth, known)

    def results(self) -> None:
        judge(self.coco, load_results(self.file(self.found), self.coco))

    def pickled(self) -> None:
        content = dict(metainfo={}, data_list=[dict(img_path="a", boxes=np.ones((2, 4)))] * 3)
        data = mutated(pickle.dumps(content, self.rng.choice([2, 4, 5])), self.rng)
        read_pickle(self.file(data, "a.pkl"))

    def in_yaml(self) -> None:
        text = yaml.dump(dict(metainfo={}, data_list=[dict(img_path="a", size=(1, 2)), [1], {"a": None}]))
        read_yaml(io.StringIO(mutated(text.encode(), self.rng).decode(errors="replace")))

    def recorded_config(self) -> None:
        text = mutated(self.config.encode(), self.rng).decode(errors="replace")
        check_buildable(literal_config(text, self.folder), self.folder)

    def run(self) -> Run:
        """A work directory, of which something is damaged."""
        data = self.work_dir / "1" / "vis_data"
        kind = self.rng.randrange(4)
        text, scalars, detections = self.config.encode(), log().encode(), self.found
        if kind == 0:
            text = mutated(text, self.rng)
        elif kind == 1:
            settings = changed(self.settings(), self.rng)
            text = "\n".join(f"{key} = {value!r}" for key, value in settings.items()).encode()
        elif kind == 2:
            scalars = mutated(scalars, self.rng)
        else:
            detections = changed(detections, self.rng)
        (data / "config.py").write_bytes(text)
        (data / "scalars.json").write_bytes(scalars)
        (self.work_dir / "results.bbox.json").write_text(json.dumps(detections))
        return read_run(self.work_dir)

    def report(self) -> None:
        speed = None if self.rng.random() < 0.7 else read_json(self.file(_SPEED))
        build_report([self.run()], speed=speed, resamples=2, images=1)


def judge(truth: COCO, entries: list[dict[str, Any]]) -> None:
    for task in tasks_of(entries):
        if task == "bbox" or all(entry.get("segmentation") for entry in truth.anns.values()):
            evaluate(truth, entries, task)


# What of each kind of file comes how often; a report takes longest.
_SHARES = dict(annotations=30, results=30, pickled=15, in_yaml=15, recorded_config=15, run=15, report=12)


def fuzz(count: int, seed: int = 0) -> Counter:
    """Read ``count`` damaged files and count the answers. A hang, and anything but ValueError, is a failure."""
    rng, answers, slowest = random.Random(seed), Counter[str](), 0.0
    with tempfile.TemporaryDirectory() as name:
        readers = Readers(Path(name), rng)
        for number in range(count):
            [kind] = rng.choices(list(_SHARES), list(_SHARES.values()))
            begin = time.process_time()
            try:
                with limited():
                    getattr(readers, kind)()
                answers[f"{kind}: read"] += 1
            except ValueError as error:
                message = str(error)
                if not message.startswith((name, "a YAML file", "the file of speeds")) or not message.isprintable():
                    raise AssertionError(f"{kind}: {message}") from error
                answers[f"{kind}: refused: " + re.sub(r"[^a-z ]+", "", message.removeprefix(name))[:40]] += 1
            except BaseException:
                kept = Path(tempfile.gettempdir()) / f"fuzz_files_{seed}_{number}"
                shutil.copytree(name, kept, dirs_exist_ok=True)
                print(f"{kind}: kept in {kept}", file=sys.stderr)
                raise
            slowest = max(slowest, time.process_time() - begin)
    return with_costs(answers, slowest)


if __name__ == "__main__":
    main(fuzz)
