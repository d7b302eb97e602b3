# Efficient channel attention in every stage, with the kernel sizes of the released ResNet-50. See sa.py for how
# configs use this base.
backbone = dict(
    type="AttentionResNet",
    attention=[dict(type="EfficientChannelAttention", kernel_size=k) for k in (3, 5, 5, 7)],
    init_cfg=dict(type="ResNetPretrained"),
)
