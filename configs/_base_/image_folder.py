# Classifiers on the images of the folder that the variable IMAGE_FOLDER names: with the lists train.txt, val.txt and
# classes.txt, which tools/dataset_converters/split_folder.py writes, or with train/<class>/* and val/<class>/*.
_base_ = ["imagenet.py"]
import os  # noqa: E402  (with an import before the bases MMEngine would parse this as its other kind of config)

from sa_mmdet.image_folders import data_of  # noqa: E402

_classes, _train, _val = data_of(os.environ.get("IMAGE_FOLDER", "data/images"))
num_classes = len(_classes)

model = dict(head=dict(num_classes=num_classes, topk=(1,)))
data_preprocessor = dict(num_classes=num_classes)
_dataset = dict(_delete_=True, type="CustomDataset", with_label=True)
train_dataloader = dict(dataset=dict(**_dataset, **_train, pipeline={{_base_.train_pipeline}}))
val_dataloader = dict(dataset=dict(**_dataset, **_val, pipeline={{_base_.test_pipeline}}))
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
del _classes, _train, _val, _dataset
