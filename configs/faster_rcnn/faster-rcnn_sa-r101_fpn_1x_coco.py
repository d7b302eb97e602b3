_base_ = ["mmdet::faster_rcnn/faster-rcnn_r101_fpn_1x_coco.py", "../_base_/sa_mmdet.py"]

model = dict(
    backbone=dict(
        type="SAResNet",
        groups=64,
        init_cfg=dict(type="ResNetPretrained"),
    )
)
