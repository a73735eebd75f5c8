"""Weights of other libraries: reading and writing under their names and layouts; and averages of weights."""

from typing import TYPE_CHECKING

from resfit._utils.words import no_attribute
from resfit.weights.averaging import average
from resfit.weights.formats import read
from resfit.weights.load_save import load, save
from resfit.weights.state_dict import load_state_dict, state_dict

__all__ = ["average", "load", "load_state_dict", "read", "save", "state_dict"]

if not TYPE_CHECKING:  # a type checker would accept every name
    __getattr__ = no_attribute(__name__, "weights")
