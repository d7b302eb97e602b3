"""What a report measures of detectors and of classifiers: names, keys of the logs, files, and the paper's results."""

from dataclasses import dataclass

from sa_mmdet.analysis.complexity import BACKBONE_SHAPE, DETECTOR_SHAPE

from .average_precision import METRICS

PAPER, _SENET = "the paper", "the SENet article"


@dataclass(frozen=True)
class Source:
    """A file with results that were published."""

    title: str  # of its tables
    file: str
    work: str = PAPER  # what it is from


@dataclass(frozen=True)
class Task:
    """One thing that runs are judged by."""

    name: str  # 'bbox', 'segm' or 'classification', as in a comparison
    title: str  # of what is measured
    measure: str  # what charts call the first metric
    metrics: tuple[str, ...]  # their names in a comparison and in tables; the first is the one that counts
    keys: tuple[str, ...]  # their names in MMEngine's log
    results: str  # what the files hold
    files: tuple[str, ...]  # where a work directory may have them; the first that is there counts
    command: str  # what writes them
    data: str  # what the paper measured on
    sources: tuple[Source, ...]
    optional: tuple[str, ...] = ()  # metrics that runs may have not measured, which then have no column
    images: int | None = None  # how many the paper's test set has; None for any number


@dataclass(frozen=True)
class Kind:
    """Detectors, or classifiers."""

    name: str  # of one
    subject: str  # of a report
    found: str  # what it answers
    tasks: tuple[Task, ...]
    prefix: str  # of the metrics in MMEngine's log
    whole: float  # what the log has for a metric of 1
    shape: tuple[int, int]  # the height and width at which the paper counts, in pixels
    digits: int  # of the paper's costs after the point


def _detection(name: str, object_: str, *sources: Source) -> Task:
    return Task(
        name=name,
        title=f"{object_} AP",
        measure=f"{object_} AP",
        metrics=METRICS,
        keys=tuple(f"coco/{name}_mAP{end}" for end in ("", "_50", "_75", "_s", "_m", "_l")),
        results=f"{object_} results",
        files=(f"results.{name}.json",),
        command="run_comparison keeps them, and so does test.py with test_evaluator.outfile_prefix=WORK_DIR/results",
        data="COCO val2017",
        sources=sources,
        images=5000,
    )


DETECTOR = Kind(
    name="detector",
    subject="detection",
    found="detections",
    tasks=(
        _detection(
            "bbox",
            "box",
            Source("Table 3: object detection, box AP", "table3_coco_detection.csv"),
            Source("SENet (arXiv 1709.01507), Table 7: Faster R-CNN, 2x schedule, box AP", "senet_coco.csv", _SENET),
        ),
        _detection(
            "segm",
            "mask",
            Source("Table 4: instance segmentation with Mask R-CNN, mask AP", "table4_coco_instance_segmentation.csv"),
        ),
    ),
    prefix="coco/",
    whole=1,
    shape=DETECTOR_SHAPE,
    digits=2,
)
CLASSIFIER = Kind(
    name="classifier",
    subject="classification",
    found="predictions",
    tasks=(
        Task(
            name="classification",
            title="accuracy",
            measure="top1",
            metrics=("top1", "top5"),
            keys=("accuracy/top1", "accuracy/top5"),
            results="predictions",
            files=("results.pkl", "results.json", "results.csv"),
            command="mim test mmpretrain CONFIG CHECKPOINT --out WORK_DIR/results.pkl writes it",
            data="ImageNet's validation images",
            sources=(
                Source("Table 1: ablations, accuracy", "table1_ablation_imagenet.csv"),
                Source("Table 2: classification, accuracy", "table2_imagenet.csv"),
                Source("SENet (arXiv 1709.01507)", "senet_imagenet.csv", _SENET),
            ),
            optional=("top5",),
            images=50_000,
        ),
    ),
    prefix="accuracy/",
    whole=100,
    shape=BACKBONE_SHAPE,
    digits=3,
)
KINDS = (DETECTOR, CLASSIFIER)
TASK_BY_NAME = {task.name: task for kind in KINDS for task in kind.tasks}
