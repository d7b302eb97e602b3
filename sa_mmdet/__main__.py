"""Print what a bug report needs: `python -m sa_mmdet`."""

from .environment import describe

if __name__ == "__main__":
    print(describe())
