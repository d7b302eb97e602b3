# The paper's schedule for ImageNet-1k (SA-Net, section 4, taken from SGE): 100 epochs of SGD from scratch, batch size
# 256 (8 GPUs with 32 images each), learning rate 0.1 after 5 epochs of linear warm-up, divided by 10 after 30, 60 and
# 90 epochs, weight decay 1e-4, random crops of 224 x 224 pixels and flips; tests use the central 224 x 224 pixels of
# images resized to 256. MMPretrain's own schedule for ResNet differs only in the warm-up. Needs MMPretrain, which needs
# torchvision.
_base_ = [
    "mmpretrain::_base_/datasets/imagenet_bs32.py",
    "mmpretrain::_base_/schedules/imagenet_bs256.py",
    "mmpretrain::_base_/default_runtime.py",
]
custom_imports = dict(imports=["sa_mmdet"])

model = dict(
    type="ImageClassifier",
    backbone=dict(out_indices=(3,), norm_eval=False, frozen_stages=-1),
    neck=dict(type="GlobalAveragePooling"),
    head=dict(
        type="LinearClsHead",
        num_classes=1000,
        in_channels=2048,
        loss=dict(type="CrossEntropyLoss", loss_weight=1.0),
        topk=(1, 5),
    ),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, begin=0, end=5, by_epoch=True, convert_to_iter_based=True),
    dict(type="MultiStepLR", milestones=[30, 60, 90], gamma=0.1, by_epoch=True),
]
