"""Error types and mended AP50, written from the TIDE paper's definitions with loops; boxes only.

IoUs, matches and precision are computed here, too: nothing is shared with the package or with pycocotools.
"""

import math
from typing import Any

Entry = dict[str, Any]
NAMES = ("classification", "localisation", "both", "duplicate", "background", "missed")
RANGES = {"all": (0, 1e10), "small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}


def overlap(detection: Entry, annotation: Entry) -> float:
    """IoU; with a crowd the share of the detection that lies in it."""
    x, y, w, h = detection["bbox"]
    left, top, width, height = annotation["bbox"]
    across = min(x + w, left + width) - max(x, left)
    down = min(y + h, top + height) - max(y, top)
    if across <= 0 or down <= 0:
        return 0.0
    common = across * down
    return common / (w * h if annotation["iscrowd"] else w * h + width * height - common)


def is_in(area: float, size: str) -> bool:
    return RANGES[size][0] <= area <= RANGES[size][1]


def strongest_first(entries: list[Entry], image: Any, kind: Any) -> list[Entry]:
    own = [one for one in entries if one["image_id"] == image and one["category_id"] == kind]
    return sorted(own, key=lambda one: -one["score"])[:100]


def matched(detections: list[Entry], annotations: list[Entry], ignored: list[bool]) -> list[int | None]:
    """For each detection of an image and class the index of its annotation, as the COCO evaluation assigns them."""
    taken: set[int] = set()
    found: list[int | None] = []
    for detection in detections:
        best = None
        for wanted in (False, True):  # ignored annotations only if there is no other
            if best is not None:
                break
            for i, annotation in enumerate(annotations):
                if ignored[i] != wanted or (i in taken and not annotation["iscrowd"]):
                    continue
                value = overlap(detection, annotation)
                if value >= 0.5 and (best is None or value >= overlap(detection, annotations[best])):
                    best = i
        if best is not None:
            taken.add(best)
        found.append(best)
    return found


def typed(detection: Entry, objects: list[Entry]) -> tuple[str, Entry | None]:
    """The type of a detection that nothing matches, and the object that it is near."""
    own = [one for one in objects if one["category_id"] == detection["category_id"]]
    other = [one for one in objects if one["category_id"] != detection["category_id"]]
    best_own = max((overlap(detection, one) for one in own), default=0)
    best_other = max((overlap(detection, one) for one in other), default=0)
    if 0.1 <= best_own < 0.5:
        return "localisation", next(one for one in own if overlap(detection, one) == best_own)
    if best_other >= 0.5:
        return "classification", next(one for one in other if overlap(detection, one) == best_other)
    if best_own >= 0.5:
        return "duplicate", None
    return ("both", None) if best_other >= 0.1 else ("background", None)


def facts(truth: Entry, entries: list[Entry], size: str) -> tuple[list[Entry], list[Entry]]:
    """The detections with their 'kind', 'object' and whether they 'count', and the objects with 'missed'."""
    judged: list[Entry] = []
    for image in truth["images"]:
        here = [one for one in truth["annotations"] if one["image_id"] == image["id"]]
        plain = [one for one in here if not one["iscrowd"]]
        for category in truth["categories"]:
            annotations = [one for one in here if one["category_id"] == category["id"]]
            ignored = [bool(one["iscrowd"]) or not is_in(one["area"], size) for one in annotations]
            detections = strongest_first(entries, image["id"], category["id"])
            for detection, i in zip(detections, matched(detections, annotations, ignored), strict=True):
                if i is None:
                    kind, near = typed(detection, plain)
                    counts = is_in(detection["bbox"][2] * detection["bbox"][3], size)
                elif ignored[i]:
                    kind, near, counts = "ignored", None, False
                else:
                    kind, near, counts = "right", annotations[i], True
                judged.append(dict(detection, kind=kind, near=near, counts=counts))
    objects = [one for one in truth["annotations"] if not one["iscrowd"] and is_in(one["area"], size)]
    explained = ("right", "localisation", "classification")
    found = {one["near"]["id"] for one in judged if one["kind"] in explained}
    return judged, [dict(one, missed=one["id"] not in found) for one in objects]


def mended(truth: Entry, entries: list[Entry], size: str, types: tuple[str, ...]) -> list[float]:
    """AP50 of each class with the errors of these types mended; NaN for a class without objects."""
    judged, objects = facts(truth, entries, size)
    places = {image["id"]: i for i, image in enumerate(truth["images"])}
    owners: dict[int, Entry] = {}
    for one in judged:
        if one["kind"] == "right" or (one["kind"] in types and one["near"] is not None):
            before = owners.get(one["near"]["id"])
            if before is None or one["score"] > before["score"]:
                owners[one["near"]["id"]] = one
    found = []
    for category in truth["categories"]:
        own = [one for one in objects if one["category_id"] == category["id"]]
        if not own:
            found.append(math.nan)
            continue
        wrong = [
            (-one["score"], places[one["image_id"]], number, False)
            for number, one in enumerate(judged)
            if one["category_id"] == category["id"] and one["counts"] and one["kind"] in set(NAMES) - set(types)
        ]
        right = [
            (-one["score"], places[one["image_id"]], judged.index(one), True)
            for one in (owners.get(each["id"]) for each in own)
            if one is not None
        ]
        total = len(own) - (sum(one["missed"] for one in own) if "missed" in types else 0)
        found.append(average(sorted(wrong + right), total))
    return found


def average(events: list[tuple[float, int, int, bool]], total: int) -> float:
    """Average precision at 101 recalls."""
    if total == 0:
        return 0.0 if events else 1.0
    points, true = [], 0
    for number, (*_, is_right) in enumerate(events, 1):
        true += is_right
        points.append((true / total, true / number))
    recalls = [*(0.01 * i for i in range(100)), 1.0]  # pycocotools' own, which differ from i / 100 in the last digit
    return sum(max((p for r, p in points if r >= recall), default=0) for recall in recalls) / 101
