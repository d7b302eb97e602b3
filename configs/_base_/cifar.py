# The schedule of the ResNet paper for CIFAR (arXiv 1512.03385, section 4.2), as the SE paper took it for ResNet-110 and
# -164: 64,000 steps of SGD with 128 images, which are 164 epochs; learning rate 0.1 after 400 steps at 0.01, divided by
# 10 after 32,000 and 48,000 steps; weight decay 1e-4. A config adds the size of batches and MMPretrain's data set,
# which pads the images by 4 pixels of zeros, crops 32 x 32 pixels and flips. Needs MMPretrain, which needs torchvision.
_base_ = ["mmpretrain::_base_/schedules/cifar10_bs128.py", "mmpretrain::_base_/default_runtime.py"]
custom_imports = dict(imports=["sa_mmdet"])

model = dict(
    type="ImageClassifier",
    backbone=dict(type="mmdet.CifarResNet"),
    neck=dict(type="GlobalAveragePooling"),
    head=dict(type="LinearClsHead", in_channels=64, loss=dict(type="CrossEntropyLoss", loss_weight=1.0), topk=(1,)),
)
train_cfg = dict(max_epochs=164)
param_scheduler = [
    dict(type="ConstantLR", factor=0.1, begin=0, end=400, by_epoch=False),
    dict(type="MultiStepLR", milestones=[32000, 48000], gamma=0.1, by_epoch=False),
]
