"""Folders of images for classifiers: a folder per class, or lists of images with their classes."""

from .cropping import crop_objects
from .lists import data_of, images_of, prefix_of
from .splitting import Split, split_folder

__all__ = ["Split", "crop_objects", "data_of", "images_of", "prefix_of", "split_folder"]
