# What every config of this package needs: the plugin itself, a look at the data before the first step, and epochs whose
# random numbers are the same after --resume.
custom_imports = dict(imports=["sa_mmdet"])
custom_hooks = [dict(type="CheckDataset"), dict(type="SeedEpochs")]
