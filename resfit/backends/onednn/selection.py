"""The choice between oneDNN and XLA for a convolution, by its sizes only.

A timing in the running process could choose differently in each process. The results would differ in the last bits, and
a run could not resume exactly. The numbers are multiply-adds from which oneDNN was faster in measurements, with a
margin: a call of oneDNN costs 20 to 30 microseconds.
"""

from resfit.backends.onednn.planning import DATA, FORWARD, WEIGHTS, Shape

LEAST = {FORWARD: 16_000_000, DATA: 16_000_000, WEIGHTS: 32_000_000}
# A convolution with a kernel of one pixel is a product of matrices. XLA is fast at it, except at the kernel's gradient.
LEAST_OF_PIXELS = {FORWARD: 16_000_000, DATA: 16_000_000, WEIGHTS: 8_000_000}
# XLA computes groups one by one, and is up to a hundred times slower.
LEAST_OF_GROUPS = 200_000
# The gradient of images with one or two channels uses only a few lanes of a vector unit.
FEW_CHANNELS = 3


def wins(shape: Shape) -> bool:
    """Return True if oneDNN is expected to be faster than XLA."""
    if shape.groups > 1:
        return shape.multiply_adds >= LEAST_OF_GROUPS
    if shape.direction == DATA and shape.kernel[2] < FEW_CHANNELS:
        return False
    pixel = shape.kernel[:2] == (1, 1)
    return shape.multiply_adds >= (LEAST_OF_PIXELS if pixel else LEAST)[shape.direction]
