_base_ = ["_base_/bccd.py"]

model = dict(backbone=dict(type="SAResNet", groups=16))
