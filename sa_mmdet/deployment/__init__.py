"""Networks for inference: baked, and exported."""

from .features import FeatureExtractor, bake_detector, export_onnx, largest_difference, load

__all__ = ["FeatureExtractor", "bake_detector", "export_onnx", "largest_difference", "load"]
