_base_ = [
    "mmdet::retinanet/retinanet_r50_fpn_1x_coco.py",
    "../_base_/sa_mmdet.py",
    "../_base_/backbones/cbam.py",
]
model = dict(backbone=_base_.pop("backbone"))
