"""Evaluation, holdout and per-source data: made from one uploaded file once its facts are found good."""
