"""The methods, in one explicit table; a test holds it against the folder. One method, one file (the flagship: a folder)."""

from cogram_core.methods import (
    adamerging,
    align,
    auto,
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
from cogram_core.methods.contract import Method

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        linear.METHOD,
        opcm.METHOD,
        preserve_first.METHOD,
        adamerging.METHOD,
        fisher.METHOD,
        regmean.METHOD,
        chain_of_merges.METHOD,
        cogram.METHOD,
        repair.METHOD,
        finetune.METHOD,
        align.METHOD,
        auto.METHOD,
    )
}

__all__ = ["METHODS"]
