"""Files in COCO's formats: annotations and results, read and checked, and a small data set that is made here."""

from .annotations import leads_inside, load_annotations, read_annotations
from .categories import category_names
from .detections import Detections
from .results import load_results, read_results, tasks_of, use_results
from .shapes import make_shapes

__all__ = [
    "Detections",
    "category_names",
    "leads_inside",
    "load_annotations",
    "load_results",
    "make_shapes",
    "read_annotations",
    "read_results",
    "tasks_of",
    "use_results",
]
