_base_ = ["../demo/_base_/bccd.py"]

model = dict(backbone=dict(type="AttentionResNet", stage_attention=dict(type="BAM")))
