"""Searches the parameters of a recipe's CoGraM stage: how hard it mixes, when it goes finer, how fair it is.

    settings   the values that are searched, and the order in which they are tried
    trials     what one setting is worth
    outcome    the table, the best recipe, and the files with both

Settings are compared on evaluation data alone. The holdout data is scored beside, and no choice looks at it, so that its
figures stay honest. Why: docs/decisions/007.
"""

from cogram_core.calibration.calibrating import calibrate
from cogram_core.calibration.outcome import Calibration, Trial
from cogram_core.calibration.settings import Setting

__all__ = ["Calibration", "Setting", "Trial", "calibrate"]
