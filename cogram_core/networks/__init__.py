"""Checkpoints that can run. Nothing in here knows of data files, losses or methods."""
