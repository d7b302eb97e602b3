# Spatial group-wise enhancement in every stage. How configs use this base: see sa.py.
backbone = dict(
    type="AttentionResNet",
    attention=dict(type="SpatialGroupEnhance", groups=64),
    init_cfg=dict(type="ResNetPretrained"),
)
