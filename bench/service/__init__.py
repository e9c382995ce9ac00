"""Figures of the running service: `python -m bench.service`, or with the names of some parts only."""
