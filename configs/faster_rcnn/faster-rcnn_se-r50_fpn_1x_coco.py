_base_ = ["mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py", "../_base_/sa_mmdet.py"]

model = dict(
    backbone=dict(
        type="AttentionResNet",
        attention=dict(type="SqueezeExcitation", ratio=16),
        init_cfg=dict(type="ResNetPretrained"),
    )
)
