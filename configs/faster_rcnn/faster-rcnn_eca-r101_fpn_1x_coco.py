_base_ = ["mmdet::faster_rcnn/faster-rcnn_r101_fpn_1x_coco.py", "../_base_/sa_mmdet.py"]

model = dict(
    backbone=dict(
        type="AttentionResNet",
        attention=[dict(type="EfficientChannelAttention", kernel_size=k) for k in (3, 3, 5, 7)],
        init_cfg=dict(type="ResNetPretrained"),
    )
)
