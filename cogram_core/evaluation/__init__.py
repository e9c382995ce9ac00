"""What a network is worth on data: datasets, prototypes, losses, evaluators. Nothing in here knows of methods."""
