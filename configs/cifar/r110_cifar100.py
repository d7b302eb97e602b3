_base_ = ["mmpretrain::_base_/datasets/cifar100_bs16.py", "../_base_/cifar.py"]

model = dict(backbone=dict(depth=110), head=dict(num_classes=100))
train_dataloader = dict(batch_size=128)
val_dataloader = dict(batch_size=128)
test_dataloader = val_dataloader
