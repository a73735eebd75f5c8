"""Weights of other libraries: their names and files, into networks and out of them."""

from resfit.weights.files import read
from resfit.weights.saved import load, save
from resfit.weights.state_dict import load_state_dict, state_dict

__all__ = ["load", "load_state_dict", "read", "save", "state_dict"]
