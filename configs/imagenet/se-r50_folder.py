_base_ = ["../_base_/image_folder.py"]

model = dict(backbone=dict(type="mmdet.AttentionResNet", depth=50, attention=dict(type="SqueezeExcitation")))
