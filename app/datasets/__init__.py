"""Evaluation, holdout, training and per-source data: made from one uploaded file once its facts are found good."""
