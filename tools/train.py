"""Train a detector: MMDetection's tools/train.py, after importing this package."""

from sa_mmdet.mmdet_tools import run_mmdet_tool

if __name__ == "__main__":
    run_mmdet_tool("train.py")
