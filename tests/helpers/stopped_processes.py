"""One of several processes that train the toy network together: python stopped_processes.py FOLDER RUNNER RANK STEP.

The process of that rank sends itself SIGTERM after that step; -1 for none. Each writes the losses that it has seen.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from toy_training import Recorder, runner

import sa_mmdet  # noqa: F401  (what is tested)

if __name__ == "__main__":
    folder, kind, rank, step = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
    recorder = Recorder()
    if os.environ["RANK"] == rank:
        recorder = Recorder(at=step, act=lambda: os.kill(os.getpid(), signal.SIGTERM))
    options: dict[str, Any] = dict(length=8, accumulative_counts=3, val_interval=1, save_best="acc")
    training = runner(folder, recorder, flexible=kind == "FlexibleRunner", resume=True, launcher="pytorch", **options)
    try:
        training.train()
    finally:
        path = folder / f"losses{os.environ['RANK']}.json"
        seen = json.loads(path.read_text()) if path.is_file() else []
        path.write_text(json.dumps([*seen, recorder.losses]))
