# After each Inception module (section 3.3), with the article's start.
_base_ = ["mmpretrain::inception_v3/inception-v3_8xb32_in1k.py"]
custom_imports = dict(imports=["sa_mmdet"])

model = dict(
    backbone=dict(
        type="WithAttention",
        module="mmpretrain.InceptionV3",
        attention={"Mixed_*": dict(type="SqueezeExcitation")},
        exact=False,
    )
)
