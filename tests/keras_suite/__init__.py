"""Run the unit tests of Keras, from a checkout, with the names of Keras mapped to resfit: `make keras-suite KERAS=...`.

Nothing of Keras is in this folder. `names.py` serves the modules `keras` and `keras.src` while the tests of the checkout
are imported; the other modules map classes and functions; `outcomes.tsv` lists the expected outcome of each test.
"""
