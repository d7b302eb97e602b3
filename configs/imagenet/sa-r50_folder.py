_base_ = ["../_base_/image_folder.py"]

model = dict(backbone=dict(type="mmdet.SAResNet", depth=50))
