"""Files of others, read and never run: checkpoints, pickles, configs that a file records, JSON.

The files that a user downloads or is sent are not programs here. Each reader first takes a file apart into inert
records, checks them and only then builds values; its time and memory are bounded by the file's size.
"""

from .config_text import literal_config
from .config_types import check_buildable
from .errors import RefusedFileError
from .json_files import read_json, read_json_parts
from .records import check_extent
from .torch_files import read_pickle, read_torch
from .yaml_files import read_yaml

__all__ = [
    "RefusedFileError",
    "check_buildable",
    "check_extent",
    "literal_config",
    "read_json",
    "read_json_parts",
    "read_pickle",
    "read_torch",
    "read_yaml",
]
