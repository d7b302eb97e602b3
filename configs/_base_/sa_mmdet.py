# What every config of this package needs: the package itself, a check of the data before the first step, and
# random numbers that are the same after --resume.
custom_imports = dict(imports=["sa_mmdet"])
custom_hooks = [dict(type="CheckDataset"), dict(type="SeedSteps")]
