"""Attention in any place of any network: behind a stage, a block or a convolution, or instead of another attention.

Each chosen module becomes an instance of a subclass of its own class, whose forward runs the attention behind the
inherited one. So the network has the same modules under the same names, and released weights load.
"""

from .layers import with_fitting_options
from .listing import Listed, list_places
from .modules import Attending, HoldingAttention, Inserted, Replacing, inserted
from .outputs import Output, run_once
from .places import Place, matching, places
from .with_attention import attach, insert, with_attention

__all__ = [
    "Attending",
    "HoldingAttention",
    "Inserted",
    "Listed",
    "Output",
    "Place",
    "Replacing",
    "attach",
    "insert",
    "inserted",
    "list_places",
    "matching",
    "places",
    "run_once",
    "with_attention",
    "with_fitting_options",
]
