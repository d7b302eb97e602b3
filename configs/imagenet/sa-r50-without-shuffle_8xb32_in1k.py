_base_ = ["../_base_/imagenet.py"]

model = dict(
    backbone=dict(type="mmdet.AttentionResNet", depth=50, attention=dict(type="ShuffleAttention", shuffle=False))
)
