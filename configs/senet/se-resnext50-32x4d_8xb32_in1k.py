# After the last norm of each block, with the article's start.
_base_ = ["./resnext50-32x4d_8xb32_in1k.py"]

model = dict(
    backbone=dict(
        type="WithAttention",
        module="mmdet.ResNeXt",
        attention={"layer*.*.bn3": dict(type="SqueezeExcitation")},
        exact=False,
    )
)
