_base_ = ["../_base_/imagenet.py"]

model = dict(backbone=dict(type="mmdet.SAResNet", depth=101))
