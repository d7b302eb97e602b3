_base_ = ["../_base_/imagenet.py"]

model = dict(backbone=dict(type="mmdet.ResNet", depth=101))
