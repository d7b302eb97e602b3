_base_ = ["r110_cifar100.py"]

model = dict(backbone=dict(attention=dict(type="ShuffleAttention", groups=8)))
