# Spatial group-wise enhancement in every stage. See sa.py for how configs use this base.
backbone = dict(
    type="AttentionResNet",
    attention=dict(type="SpatialGroupEnhance", groups=64),
    init_cfg=dict(type="ResNetPretrained"),
)
