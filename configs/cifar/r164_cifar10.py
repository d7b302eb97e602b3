_base_ = ["r110_cifar10.py"]

model = dict(backbone=dict(depth=164), head=dict(in_channels=256))
