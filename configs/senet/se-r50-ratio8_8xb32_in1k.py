_base_ = ["./se-r50-without-bias_8xb32_in1k.py"]

model = dict(backbone=dict(attention=dict(ratio=8)))
