"""Checkpoints: made from uploaded files once their headers are found good, listed, looked at, removed.

Reads headers only; what a tensor means is none of its business.
"""
