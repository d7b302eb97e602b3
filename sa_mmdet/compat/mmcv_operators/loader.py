"""Makes torchvision's operators stand in for mmcv's compiled ones, which are not installed.

This is a copy in mmcv's folder of a file of sa_mmdet. `python -m sa_mmdet.compat.mmcv_operators install` writes it and
`... remove` deletes it. Compiled operators have priority over it.
"""

import importlib.util
import sys
from pathlib import Path

# The package must not be imported here: it imports MMDetection, which is importing this file.
package = importlib.util.find_spec("sa_mmdet")
if package is None or not package.submodule_search_locations:
    raise ModuleNotFoundError(
        f"mmcv has no compiled operators, and sa_mmdet, whose stand-ins for them {__file__} loads, is not installed. "
        "Install mmcv with its operators and delete this file",
        name=__name__,
    )
folder = Path(package.submodule_search_locations[0], "compat", "mmcv_operators", "extension")
spec = importlib.util.spec_from_file_location(
    __name__, folder / "__init__.py", submodule_search_locations=[str(folder)]
)
assert spec is not None
assert spec.loader is not None
sys.modules[__name__] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules[__name__])
