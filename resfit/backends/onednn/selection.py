"""Which convolutions oneDNN takes over: decided by their sizes alone, from what was measured once.

Never by a timing in the running process: another choice would give other last bits, and a run could not go on exactly.
The numbers are multiply-adds from which oneDNN was faster, with room: a call costs it 20 to 30 microseconds.
"""

from resfit.backends.onednn.planning import DATA, FORWARD, WEIGHTS, Shape

LEAST = {FORWARD: 16_000_000, DATA: 16_000_000, WEIGHTS: 32_000_000}
# A kernel of one pixel is a product of matrices, which XLA does well; only its gradient for the kernel it does not.
LEAST_OF_PIXELS = {FORWARD: 16_000_000, DATA: 16_000_000, WEIGHTS: 8_000_000}
# XLA takes groups one by one, and is up to a hundred times slower.
LEAST_OF_GROUPS = 200_000
# The gradient for images of one or two channels fills the lanes of a vector unit badly.
FEW_CHANNELS = 3


def wins(shape: Shape) -> bool:
    """Whether oneDNN is expected to be faster than XLA."""
    if shape.groups > 1:
        return shape.multiply_adds >= LEAST_OF_GROUPS
    if shape.direction == DATA and shape.kernel[2] < FEW_CHANNELS:
        return False
    pixel = shape.kernel[:2] == (1, 1)
    return shape.multiply_adds >= (LEAST_OF_PIXELS if pixel else LEAST)[shape.direction]
