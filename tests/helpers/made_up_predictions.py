"""Made-up predictions of classifiers, in each form that they are read in."""

import csv
import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

IMAGES, CLASSES = 200, 12


class Data:
    """Made-up images with their classes, and the scores that classifiers of several strengths give."""

    def __init__(self) -> None:
        generator = np.random.default_rng(0)
        self.labels = generator.integers(0, CLASSES, IMAGES)
        self.names = [f"{label}/{number}.jpg" for number, label in enumerate(self.labels)]

    def scores(self, strength: float, seed: int) -> np.ndarray:
        scores = np.random.default_rng(seed).normal(size=(IMAGES, CLASSES)).astype(np.float32)
        scores[np.arange(IMAGES), self.labels] += strength
        return scores


DATA = Data()


def as_json(path: Path, scores: np.ndarray, label: bool = True) -> Path:
    entries = [
        dict(image=name, scores=own.tolist(), **(dict(label=int(kind)) if label else {}))
        for name, own, kind in zip(DATA.names, scores, DATA.labels, strict=True)
    ]
    path = path.with_suffix(".json")
    path.write_text(json.dumps(entries[::-1]))  # in any order
    return path


def as_ranked_json(path: Path, scores: np.ndarray) -> Path:
    entries = [
        dict(image=name, label=f"kind {kind}", ranked=[f"kind {k}" for k in (-own).argsort()[:5]])
        for name, own, kind in zip(DATA.names, scores, DATA.labels, strict=True)
    ]
    path = path.with_suffix(".json")
    path.write_text(json.dumps(entries))
    return path


def as_csv(path: Path, scores: np.ndarray) -> Path:
    """Ranked classes, as numbers."""
    lines = [
        [f"/elsewhere/val/{name}", kind, *(-own).argsort()[:5]]
        for name, own, kind in zip(DATA.names, scores, DATA.labels, strict=True)
    ]
    return table(path, ["image", "label", *(f"top{k}" for k in range(1, 6))], lines)


def as_csv_of_scores(path: Path, scores: np.ndarray) -> Path:
    lines = [
        [name, f"kind {kind}", *map(str, own)] for name, own, kind in zip(DATA.names, scores, DATA.labels, strict=True)
    ]
    return table(path, ["image", "label", *(f"kind {k}" for k in range(CLASSES))], lines)


def table(path: Path, header: Sequence[str], lines: Sequence[Sequence[Any]]) -> Path:
    path = path.with_suffix(".csv")
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *lines])
    return path


def as_pickle(path: Path, scores: np.ndarray) -> Path:
    """What MMPretrain's test.py --out writes: MMEngine's DumpResults pickles data samples as dicts of tensors."""
    entries = [
        dict(
            sample_idx=number,
            img_path=f"/data/val/{name}",
            ori_shape=(40, 48),
            img_shape=(224, 224),
            num_classes=CLASSES,
            gt_label=torch.tensor([int(kind)]),
            pred_score=own,
            pred_label=own.argmax(0, keepdim=True),
        )
        for number, (name, own, kind) in enumerate(zip(DATA.names, torch.tensor(scores), DATA.labels, strict=True))
    ]
    path = path.with_suffix(".pkl")
    path.write_bytes(pickle.dumps(entries, protocol=2))
    return path


def accuracy(scores: np.ndarray, k: int) -> float:
    """Computed with loops."""
    right = 0
    for own, label in zip(scores.tolist(), DATA.labels, strict=True):
        best = sorted(range(CLASSES), key=lambda number: -own[number])[:k]
        right += int(label) in best
    return right / IMAGES
