_base_ = ["r164_cifar100.py"]

model = dict(backbone=dict(attention=dict(type="SqueezeExcitation")))
