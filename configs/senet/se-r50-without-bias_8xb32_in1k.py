# The standard of the ablations: the article leaves out the biases in them (section 6).
_base_ = ["../imagenet/se-r50_8xb32_in1k.py"]

model = dict(backbone=dict(attention=dict(bias=False)))
