"""The methods, in one explicit table; a test holds it against the folder. One method, one file (the flagship: a folder)."""

from cogram_core.methods import (
    adamerging,
    align,
    chain_of_merges,
    cogram,
    finetune,
    fisher,
    linear,
    opcm,
    preserve_first,
    regmean,
    repair,
)
from cogram_core.methods.contract import NetworkMethod, TensorMethod

METHODS: dict[str, TensorMethod | NetworkMethod] = {
    method.name: method
    for method in (
        linear.METHOD,
        opcm.METHOD,
        preserve_first.METHOD,
        adamerging.METHOD,
        fisher.METHOD,
        chain_of_merges.METHOD,
        regmean.METHOD,
        cogram.METHOD,
        repair.METHOD,
        finetune.METHOD,
        align.METHOD,
    )
}

__all__ = ["METHODS"]
