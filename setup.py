import sys
from pathlib import Path
from typing import Any

from setuptools import Extension, find_packages, setup

ROOT = Path(__file__).parent
VERSION: dict[str, str] = {}
exec((ROOT / "sa_mmdet" / "version.py").read_text(), VERSION)

NATIVE = Path("sa_mmdet", "ops", "native")
# Vectors as wide as the processor's come from the sources; NaN and infinities are computed with. Threaded jumps turn
# `x > most ? most : x` into paths of their own, each with its own copy of what follows: sigmoids take twice the time.
FLAGS = ["-O3", "-g0", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-fno-thread-jumps"]
FLAGS += ["-Wall", "-Wno-unknown-pragmas"]


def native() -> dict[str, Any]:
    """The library of operators for CPUs, where PyTorch is there to build it with; the package works without it."""
    if any(command in sys.argv for command in ("egg_info", "dist_info", "sdist")):  # PyTorch takes seconds to import
        return {}
    try:
        from torch.utils.cpp_extension import BuildExtension, include_paths, library_paths
    except Exception:  # an isolated build has no PyTorch; a broken one can raise anything
        return {}
    names: dict[str, Any] = {}
    exec((ROOT / NATIVE / "__init__.py").read_text(), names)
    if "editable_wheel" in sys.argv and names["is_built"](ROOT / NATIVE):
        return {}

    class Build(BuildExtension):
        def build_extensions(self) -> None:
            try:
                super().build_extensions()
            except (Exception, SystemExit) as error:
                print(f"sa_mmdet: no C++ operator ({error}): PyTorch's own operators do its work", file=sys.stderr)
                self.extensions = []

    extension = Extension(
        ".".join([*NATIVE.parts, names["library_name"]()]),
        [str(NATIVE / name) for name in names["SOURCES"]],
        depends=[str(path) for kind in ("*.cpp", "*.h") for path in (ROOT / NATIVE).glob(kind)],
        include_dirs=include_paths(),
        library_dirs=library_paths(),
        libraries=["c10", "torch_cpu"],
        extra_compile_args=FLAGS,
        language="c++",
    )
    return dict(ext_modules=[extension], cmdclass=dict(build_ext=Build))


setup(
    **native(),
    name="sa_mmdet",
    version=VERSION["__version__"],
    description="Attention backbones for MMDetection: shuffle attention (SA-Net) and the modules it is compared with",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["sa_mmdet", "sa_mmdet.*"]),
    # sa_mmdet/.mim holds links to configs, tools and model-index.yml, which is where openmim looks for them; the globs
    # put the files behind them into the wheel.
    package_data={
        "sa_mmdet": [
            "py.typed",
            "ops/native/*.cpp",
            "ops/native/*.h",
            "evaluation/templates/*.html",
            ".mim/model-index.yml",
            ".mim/configs/**/*.py",
            ".mim/configs/**/*.yml",
            ".mim/configs/**/*.md",
            ".mim/configs/**/*.csv",
            ".mim/tools/**/*.py",
        ]
    },
    python_requires=">=3.10",
    # The OpenMMLab packages are extras, not requirements: the maintained fork provides the same imports under other
    # names, and a requirement would install the upstream ones over it.
    install_requires=["torch>=1.13", "numpy", "pycocotools", "jinja2"],
    extras_require={
        "upstream": ["mmengine>=0.10", "mmcv>=2.0.1,<2.2", "mmdet>=3.3"],
        "weights": ["safetensors"],
        "visual": ["captum"],
        "deploy": ["onnx", "onnxruntime", "onnxscript"],
        "onedl": ["onedl-mmengine", "onedl-mmcv", "onedl-mmdetection"],
    },
)
