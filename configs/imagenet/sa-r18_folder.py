"""Train a small SA-Net on the images {train,val}/<class>/*.jpg in the folder that the variable IMAGE_FOLDER names."""

_base_ = ["../_base_/imagenet.py"]
import os  # noqa: E402  (with an import before the bases MMEngine would parse this as its other kind of config)

data_root = os.environ.get("IMAGE_FOLDER", "data/images")
_train = os.path.join(data_root, "train")
if not os.path.isdir(_train):
    raise FileNotFoundError(f"{_train} does not exist: set IMAGE_FOLDER to a folder with train/<class> and val/<class>")
num_classes = sum(entry.is_dir() for entry in os.scandir(_train))

model = dict(
    backbone=dict(type="mmdet.SAResNet", depth=18, groups=16),
    head=dict(in_channels=512, num_classes=num_classes, topk=(1,)),
)
data_preprocessor = dict(num_classes=num_classes)
_dataset = dict(_delete_=True, type="CustomDataset", data_root=data_root, with_label=True)
train_dataloader = dict(dataset=dict(**_dataset, data_prefix="train", pipeline={{_base_.train_pipeline}}))
val_dataloader = dict(dataset=dict(**_dataset, data_prefix="val", pipeline={{_base_.test_pipeline}}))
test_dataloader = val_dataloader
val_evaluator = dict(topk=(1,))
test_evaluator = val_evaluator

# A small data set needs many epochs and a short warm-up.
train_cfg = dict(max_epochs=30)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, begin=0, end=1, by_epoch=True, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", T_max=29, begin=1, by_epoch=True),
]
optim_wrapper = dict(optimizer=dict(lr=0.0125))  # for batches of 32 images on one GPU or CPU
default_hooks = dict(checkpoint=dict(max_keep_ckpts=1, save_best="accuracy/top1"))
del _train, _dataset
