"""Run Keras's unit tests from a checkout, with the names of Keras mapped to resfit: `make keras-suite KERAS=path`.

This folder holds no code of Keras. `run.py` executes the tests of the checkout and compares their outcomes with
`outcomes.tsv`. `names.py` serves the modules `keras.*` to them; `layers.py`, `objects.py`, `data.py` and `checks.py`
map classes and functions.
"""
