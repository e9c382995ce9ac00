"""Files on their way in: streamed, hashed, stored under a name until a checkpoint or dataset is made of them.

Knows nothing of what is inside a file.
"""
