# MMPretrain's own, which se-inception-v3 is compared with.
_base_ = ["mmpretrain::inception_v3/inception-v3_8xb32_in1k.py"]
custom_imports = dict(imports=["sa_mmdet"])  # by which PyTorch 2.6 and newer read its checkpoint at the test
