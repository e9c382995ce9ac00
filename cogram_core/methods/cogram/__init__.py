"""CoGraM: context-sensitive granular merging with rollback.

Improves the current network unit by unit. A unit's value from each source is put into the network as it stands, the losses
on prototypes decide the mix, and a mix that doesn't lower the loss is rolled back.

    params      all parameters, their defaults and presets
    decide      what the losses of a unit's candidates say: shares, or look finer, or leave it
    visitor     visits of whole layers; the loss as it stands, limits, the record
    window      a run of neurons or weights with their values
    exact       a window's decisions, as if unit by unit
    blockwise   a block's decisions, approximately
    windows     window after window
    sweeps      the order of visits: passes of one level after the other, or thresholds that send single units finer

Source: arXiv:2512.03610. Where the paper leaves a choice open, the choice made here is said beside the parameter.
"""

from cogram_core.methods.cogram.params import Params
from cogram_core.methods.cogram.sweeps import run
from cogram_core.methods.contract import NetworkMethod

METHOD = NetworkMethod(name="cogram", params=Params, run=run, kind="refining")

__all__ = ["METHOD", "Params", "run"]
