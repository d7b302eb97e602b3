# Squeeze-and-excitation in every stage. How configs use this base: see sa.py.
backbone = dict(
    type="AttentionResNet",
    attention=dict(type="SqueezeExcitation", ratio=16),
    init_cfg=dict(type="ResNetPretrained"),
)
