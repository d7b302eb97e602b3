_base_ = [
    "mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py",
    "../_base_/sa_mmdet.py",
    "../_base_/backbones/sge.py",
]
model = dict(backbone=_base_.pop("backbone"))
