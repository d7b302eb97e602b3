from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION: dict[str, str] = {}
exec((ROOT / "sa_mmdet" / "version.py").read_text(), VERSION)

setup(
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
