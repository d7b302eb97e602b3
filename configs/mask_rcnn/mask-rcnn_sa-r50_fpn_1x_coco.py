_base_ = [
    "mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py",
    "../_base_/sa_mmdet.py",
    "../_base_/backbones/sa.py",
]
model = dict(backbone=_base_.pop("backbone"))
