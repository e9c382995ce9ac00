"""The recipe: what to fuse and how; the one document that every door accepts.

Free of torch and numpy: the API process validates recipes with it.
"""

from cogram_core.recipe.document import (
    CRITERIA,
    Data,
    Guard,
    Output,
    Recipe,
    Reference,
    SequentialNetwork,
    Source,
    Stage,
    TransformersNetwork,
)

__all__ = [
    "CRITERIA",
    "Data",
    "Guard",
    "Output",
    "Recipe",
    "Reference",
    "SequentialNetwork",
    "Source",
    "Stage",
    "TransformersNetwork",
]
