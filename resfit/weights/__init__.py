"""Weights of other libraries: state dicts under PyTorch's names, into networks and out of them."""

from resfit.weights.state_dict import load_state_dict, state_dict

__all__ = ["load_state_dict", "state_dict"]
