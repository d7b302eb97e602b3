# Squeeze-and-excitation in every stage. See sa.py for how configs use this base.
backbone = dict(
    type="AttentionResNet",
    attention=dict(type="SqueezeExcitation", ratio=16),
    init_cfg=dict(type="ResNetPretrained"),
)
