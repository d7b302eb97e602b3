_base_ = ["../demo/_base_/bccd.py"]

model = dict(backbone=dict(type="AttentionResNet", attention=dict(type="GroupBranches", groups=16, branches="channel")))
