# Nothing in the place of MMPretrain's SE in each MBConv block: what se-efficientnet-b0 is compared with.
_base_ = ["mmpretrain::efficientnet/efficientnet-b0_8xb32_in1k.py"]
custom_imports = dict(imports=["sa_mmdet"])

model = dict(
    backbone=dict(
        type="WithAttention",
        module="mmpretrain.EfficientNet",
        replace={"layers.*.*.se": dict(type="torch.nn.Identity")},
    )
)
