# A short schedule for a detector without pretrained weights, small enough for two CPU cores.
_base_ = ["mmdet::_base_/default_runtime.py", "../../_base_/sa_mmdet.py"]

max_epochs = 12
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=max_epochs, val_interval=1)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=5e-4, weight_decay=0.05),
    clip_grad=dict(max_norm=10, norm_type=2),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type="CosineAnnealingLR", eta_min_ratio=0.01, T_max=max_epochs, by_epoch=True, convert_to_iter_based=True),
]
default_hooks = dict(
    logger=dict(interval=10),
    checkpoint=dict(interval=1, max_keep_ckpts=2, save_best="coco/bbox_mAP", rule="greater"),
)
randomness = dict(seed=0)

# Data sets in COCO's format: each config adds data_root, metainfo and pipelines.
loader = dict(batch_size=8, num_workers=1, persistent_workers=True)
dataset = dict(type="CocoDataset", data_prefix=dict(img="images/"))
train_dataloader = dict(
    **loader,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(**dataset, ann_file="annotations/instances_train.json", filter_cfg=dict(filter_empty_gt=True)),
)
val_dataloader = dict(
    **loader,
    drop_last=False,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(**dataset, ann_file="annotations/instances_val.json", test_mode=True),
)
test_dataloader = val_dataloader
