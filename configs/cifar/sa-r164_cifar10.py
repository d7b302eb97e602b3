_base_ = ["r164_cifar10.py"]

model = dict(backbone=dict(attention=dict(type="ShuffleAttention", groups=8)))
