_base_ = ["r110_cifar10.py"]

model = dict(backbone=dict(attention=dict(type="SqueezeExcitation")))
