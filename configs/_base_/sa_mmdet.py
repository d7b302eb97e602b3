# What every config of this package needs: the plugin itself, and a look at the data before the first step.
custom_imports = dict(imports=["sa_mmdet"])
custom_hooks = [dict(type="CheckDataset")]
