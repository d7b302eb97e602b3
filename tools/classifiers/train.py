"""Train a classifier: MMPretrain's tools/train.py, after importing this package."""

from sa_mmdet.upstream_tools import run_tool

if __name__ == "__main__":
    run_tool("mmpretrain", "train.py")
