_base_ = ["../_base_/imagenet.py"]

model = dict(backbone=dict(type="mmdet.AttentionResNet", depth=101, attention=dict(type="CBAM")))
