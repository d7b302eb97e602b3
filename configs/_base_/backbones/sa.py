# Shuffle attention in every stage, starting from the plain ResNet that the detector's own config names.
#
# MMEngine lets no two bases set the same key, and the detector's base sets `model`. A config therefore takes the
# backbone out of this base: model = dict(backbone=_base_.pop("backbone"))
backbone = dict(type="SAResNet", groups=64, init_cfg=dict(type="ResNetPretrained"))
