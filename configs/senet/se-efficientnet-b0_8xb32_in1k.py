# This package's SE in the place of MMPretrain's in each MBConv block.
_base_ = ["efficientnet-b0-without-se_8xb32_in1k.py"]

model = dict(backbone=dict(replace={"layers.*.*.se": dict(type="SqueezeExcitation", ratio="auto")}))
