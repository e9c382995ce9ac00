"""Checkpoints on disk: tensors in one or more safetensors files, read strictly and written by streaming.

``header`` (with ``specs``, ``parsing``, ``shards``, ``strict_json``, ``opening``) knows names, shapes and places and is
free of torch and numpy, so that the API may use it. ``reader`` and ``writer`` move tensors and need torch; this file
imports neither.

What must not enter: anything that knows what a tensor means (networks, methods), any way to unpickle, any use of a
tensor's name as a path, any memory map (a mapped file that is cut short kills the process that reads it).
"""
