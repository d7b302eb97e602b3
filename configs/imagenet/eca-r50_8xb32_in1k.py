_base_ = ["../_base_/imagenet.py"]

model = dict(
    backbone=dict(
        type="mmdet.AttentionResNet",
        depth=50,
        attention=[dict(type="EfficientChannelAttention", kernel_size=k) for k in (3, 5, 5, 7)],
    )
)
