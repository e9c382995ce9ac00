"""Align: permute hidden units of all sources onto those of one, so that like stands beside like.

Networks trained from different initialisations do the same with other units; averaged, they destroy each other. Which units
can be permuted, and what with them, is found by ``networks.permutations``; each source computes what it did before.

    params       all parameters
    aligning     the stage: groups of units, orders for them, what is recorded
    activations  how alike units are by what they do on data
    weights      orders by the likeness of weights, one group after the other until nothing changes
    assignment   the best order for a table of likenesses
"""

from cogram_core.methods.align.aligning import run
from cogram_core.methods.align.params import Params
from cogram_core.methods.contract import NetworkMethod

METHOD = NetworkMethod(name="align", params=Params, run=run, kind="aligning")

__all__ = ["METHOD", "Params", "run"]
