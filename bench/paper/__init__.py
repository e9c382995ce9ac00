"""The experiments of the paper, and those that its open questions ask for: tables, plots, raw results.

Nothing outside ``bench/`` may import this. ``python -m bench.paper`` runs all of it.

    measuring    what is measured: fusions, training curves, correlations; each a function of one plain document
    storing      measured results by what they depend on, so that a stopped run goes on
    tables       Markdown, mean ± standard deviation, paired differences
    plotting     one look for all figures, the same bytes on every run
    experiments  what is asked, one module a question
"""
