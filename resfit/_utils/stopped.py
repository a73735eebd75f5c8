"""The exception of a loop that stopped where Ctrl-C asked it to."""


class Stopped(KeyboardInterrupt):
    """Ctrl-C, after which a loop ended at a batch boundary: the frames inside resfit explain nothing.

    The public methods raise a `KeyboardInterrupt` without these frames in its place.
    """
