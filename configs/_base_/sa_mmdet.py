# For every config: imports this package, checks the data set before the first step, and seeds each step, so that a
# resumed training (--resume) draws the same random numbers as an uninterrupted one.
custom_imports = dict(imports=["sa_mmdet"])
custom_hooks = [dict(type="CheckDataset"), dict(type="SeedSteps")]
