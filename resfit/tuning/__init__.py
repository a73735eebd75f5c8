"""`search` tries learning rates, weight decays, seeds and other arguments of `compile`."""

from resfit.tuning.results import SearchResult, Trial
from resfit.tuning.search import search

__all__ = ["SearchResult", "Trial", "search"]
