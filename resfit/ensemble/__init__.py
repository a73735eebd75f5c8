"""Several networks that are trained together: error bars, sweeps, folds and ensembles in one call."""

from resfit.ensemble.each import Each
from resfit.ensemble.ensemble import Ensemble
from resfit.ensemble.history import EnsembleHistory
from resfit.ensemble.scores import Scores

__all__ = ["Each", "Ensemble", "EnsembleHistory", "Scores"]
