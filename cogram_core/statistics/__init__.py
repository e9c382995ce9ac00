"""What networks tell about their tensors on data, for merging methods to share. Nothing in here knows of methods."""
