_base_ = ["./se-r50-without-bias_8xb32_in1k.py"]

model = dict(backbone=dict(stage_with_attention=(False, True, False, False)))
