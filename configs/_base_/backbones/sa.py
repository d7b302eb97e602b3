# Shuffle attention in every stage; the weights are those of the plain ResNet that the detector's base names.
#
# In MMEngine two bases may not define the same key, and the detector's base defines `model`. A config therefore takes
# the backbone from this base with: model = dict(backbone=_base_.pop("backbone"))
backbone = dict(type="SAResNet", groups=64, init_cfg=dict(type="ResNetPretrained"))
