"""Evaluate a detector: MMDetection's tools/test.py, after importing this package."""

from sa_mmdet.mmdet_tools import run_mmdet_tool

if __name__ == "__main__":
    run_mmdet_tool("test.py")
