"""Repairs of how OpenMMLab's packages read files of others: whatever they ask for, nothing that a file holds is run.

What a user's own code asks for, be it ``torch.load``, ``mmengine.load`` or ``Config.fromstring``, is as it was.
"""

import io
import sys
from typing import Any

import torch
from mmengine.config import Config
from mmengine.fileio.handlers import PickleHandler, YamlHandler
from mmengine.runner import checkpoint

from sa_mmdet.untrusted import (
    RefusedFileError,
    check_buildable,
    literal_config,
    read_pickle,
    read_torch,
    read_yaml,
)

from .askers import asking_module, opens_file_for_openmmlab, replace_in_openmmlab, strict_for_openmmlab
from .downloads import load_url

# The names in the pickles of numpy's own arrays, which mmdet reads with numpy.load.
_ARRAYS = {
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    *(("numpy", name) for name in ("ndarray", "dtype")),
    ("_codecs", "encode"),
}


def load_tensors(file: Any, map_location: Any = None, *arguments: Any, **options: Any) -> Any:
    """As :func:`torch.load`, for tensors, plain containers and MMEngine's history alone, with every PyTorch.

    Args:
        file: A path, or an open file.
        map_location: The devices to load to.
        arguments: Ignored, as are all others that torch.load takes, such as ``weights_only=False``.
        options: Ignored.

    Raises:
        FileNotFoundError: There is no such file.
        RefusedFileError: The file holds anything else, none of which has been run; or its state_dict is not
            a dict of names.
    """
    loaded = read_torch(file, map_location)
    state = loaded.get("state_dict", {}) if isinstance(loaded, dict) else {}
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise RefusedFileError(f"{file}: its state_dict is not a dict of names and tensors")
    return loaded


def load_strictly() -> None:
    """Load tensors and plain containers alone wherever a package of OpenMMLab loads a checkpoint.

    MMEngine (0.11) asks PyTorch to unpickle everything, the fork (0.10.12) does so once the strict way has failed, and
    PyTorch's loader of addresses does unless it is told otherwise. The environment variable
    TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD has no effect here.
    """
    load, from_url = torch.load, torch.hub.load_state_dict_from_url
    torch.load = torch.serialization.load = strict_for_openmmlab(load, load_tensors)
    torch.hub.load_state_dict_from_url = strict_for_openmmlab(from_url, load_url)
    replace_in_openmmlab(load, load_tensors)
    replace_in_openmmlab(from_url, load_url)
    if hasattr(checkpoint, "_safe_torch_load"):  # the fork's
        checkpoint._safe_torch_load = load_tensors


def refuse_what_gets_past() -> None:
    """Refuse all names in a pickle that a package of OpenMMLab opens by a way that the other repairs do not know.

    An audit hook sees every name that Python's unpicklers look up, however they were reached. Data that is passed
    between processes is not concerned.
    """
    sys.addaudithook(_watch)


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "pickle.find_class" and arguments not in _ARRAYS and opens_file_for_openmmlab():
        raise RefusedFileError(f"a pickle asks for {'.'.join(map(str, arguments))!r}, which is refused and was not run")


def read_data_files_strictly() -> None:
    """Read annotations and results that are pickles or YAML as plain data wherever a package of OpenMMLab does."""
    from_pickle, from_yaml = PickleHandler.load_from_fileobj, YamlHandler.load_from_fileobj
    PickleHandler.load_from_fileobj = strict_for_openmmlab(from_pickle, _plain_pickle)
    YamlHandler.load_from_fileobj = strict_for_openmmlab(from_yaml, _plain_yaml)


def _plain_pickle(handler: Any, file: Any, **options: Any) -> Any:
    return read_pickle(file if hasattr(file, "seek") else io.BytesIO(file.read()))


def _plain_yaml(handler: Any, file: Any, **options: Any) -> Any:
    return read_yaml(file)


def read_recorded_configs_as_literals() -> None:
    """Read the configs that checkpoints record as literals, where MMEngine would run them as programs.

    ``--resume`` looks into such a text, and ``DetInferencer(weights=FILE)`` builds what it describes, for which its
    types must be registered.
    """
    run = Config.fromstring

    def read(cfg_str: str, file_format: str = ".py") -> Config:
        cfg = literal_config(cfg_str, "the checkpoint")
        if not asking_module().startswith("mmengine.runner"):
            visualizer = cfg.get("visualizer")
            if isinstance(visualizer, dict):  # inference writes where it is told to, not where the file says
                visualizer.pop("save_dir", None)
                visualizer["vis_backends"] = []
            check_buildable(cfg, "the checkpoint")
        return cfg

    Config.fromstring = staticmethod(strict_for_openmmlab(run, read))
