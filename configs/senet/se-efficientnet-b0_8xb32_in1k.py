# This package's SE in the place of MMPretrain's in each MBConv block.
_base_ = ["mmpretrain::efficientnet/efficientnet-b0_8xb32_in1k.py"]
custom_imports = dict(imports=["sa_mmdet"])

model = dict(
    backbone=dict(
        type="WithAttention",
        module="mmpretrain.EfficientNet",
        replace={"layers.*.*.se": dict(type="SqueezeExcitation", ratio="auto")},
    )
)
