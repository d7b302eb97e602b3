_base_ = ["r152_8xb32_places365.py"]

model = dict(backbone=dict(type="mmdet.AttentionResNet", attention=dict(type="SqueezeExcitation")))
