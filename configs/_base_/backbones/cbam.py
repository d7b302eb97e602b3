# CBAM, channel and spatial attention, in every stage. How configs use this base: see sa.py.
backbone = dict(
    type="AttentionResNet",
    attention=dict(type="CBAM", ratio=16),
    init_cfg=dict(type="ResNetPretrained"),
)
