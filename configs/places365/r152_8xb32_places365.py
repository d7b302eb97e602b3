# Places-365 with the SE paper's schedule: 100 epochs from scratch, a learning rate of 0.6 for 1024 images per step,
# which is 0.15 for 256, divided by 10 after 30, 60 and 90 epochs. Each line of a list is an image and its class.
_base_ = ["../_base_/imagenet.py"]

num_classes = 365
model = dict(backbone=dict(type="mmdet.ResNet", depth=152), head=dict(num_classes=num_classes))
data_preprocessor = dict(num_classes=num_classes)
_dataset = dict(_delete_=True, type="CustomDataset", data_root="data/places365", with_label=True)
train_dataloader = dict(
    dataset=dict(
        **_dataset,
        ann_file="places365_train_standard.txt",
        data_prefix="data_large",
        pipeline={{_base_.train_pipeline}},
    )
)
val_dataloader = dict(
    dataset=dict(
        **_dataset,
        ann_file="places365_val.txt",
        data_prefix="val_large",
        pipeline={{_base_.test_pipeline}},
    )
)
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(lr=0.15))
param_scheduler = dict(_delete_=True, type="MultiStepLR", milestones=[30, 60, 90], gamma=0.1, by_epoch=True)
del _dataset
