"""What a step of `fit` costs, alone and with ten callbacks; the arguments are those of `benchmarks.steps`.

Other measurements are modules of their own, such as `python -m benchmarks.folder`.
"""

from benchmarks import callbacks, steps

steps.main()
callbacks.main()
