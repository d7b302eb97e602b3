_base_ = ["../imagenet/r50_8xb32_in1k.py"]

model = dict(backbone=dict(type="mmdet.ResNeXt", groups=32, base_width=4))
