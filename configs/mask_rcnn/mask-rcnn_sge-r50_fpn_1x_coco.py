_base_ = ["mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py", "../_base_/sa_mmdet.py"]

model = dict(
    backbone=dict(
        type="AttentionResNet",
        attention=dict(type="SpatialGroupEnhance", groups=64),
        init_cfg=dict(type="ResNetPretrained"),
    )
)
