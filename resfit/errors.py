"""Every error that resfit raises on purpose.

Each message says what happened with the received values, what was expected, and how to fix it. All of them derive from
`ResfitError`, and also from the built-in exception a caller would expect, so that `except ValueError` keeps working.
"""


class ResfitError(Exception):
    """Base of all errors that resfit raises on purpose."""


# --- networks ---------------------------------------------------------------------------------------------------------


class ShortcutShapeError(ResfitError, ValueError):
    """A residual block cannot add its branch to its shortcut: their shapes differ. Raised when the block is built."""


class BlockError(ResfitError, TypeError):
    """A residual block is written in a way that cannot work: it bypasses the addition, or its parts are no modules."""


class InputShapeError(ResfitError, ValueError):
    """Base of the errors about an input whose shape a network cannot take."""


class RankError(InputShapeError):
    """The input is not a batch of images (batch, height, width, channels)."""


class ChannelError(InputShapeError):
    """The input has another number of channels than the network was built for."""


class LayoutError(ChannelError):
    """The input is laid out (batch, channels, height, width); resfit's networks take NHWC."""


class ImageTooSmallError(InputShapeError):
    """The stem or a stage would shrink the image to nothing."""


class StemWarning(UserWarning):
    """A small image enters a stem made for large ones; most of its detail is gone before the first block."""


class SpecError(ResfitError, ValueError):
    """A network specification is inconsistent, or no network of that name is known."""


class WeightsError(ResfitError, ValueError):
    """A state dict does not fit the network: missing, unexpected or mis-shaped entries, all listed."""


# --- training ---------------------------------------------------------------------------------------------------------


class CompileError(ResfitError, ValueError):
    """An argument of `Model.compile` is unknown, or cannot be combined with the others."""


class NotCompiledError(ResfitError, RuntimeError):
    """`fit`, `evaluate` or `train_on_batch` was called before `compile`."""


class ModuleError(ResfitError, TypeError):
    """The module cannot be trained: it is no nnx.Module, or it changes its own structure while it is called."""


class OverrideError(ResfitError, AttributeError):
    """A subclass of `Model` defines, or an assignment sets, a name of another library that resfit does not read."""


class DataError(ResfitError, ValueError):
    """The input data are empty, of unequal length, or of a kind that resfit cannot read."""


class BadRecordError(DataError):
    """One record of a stream cannot be used: an image that does not decode, or a label that is missing."""


class DownloadError(ResfitError, OSError):
    """A data set or a file of weights could not be downloaded, or what came is not the published file."""


class LabelError(DataError):
    """The labels do not fit the outputs: out of range, of another count or rank, or ambiguous."""


class LossError(ResfitError, ValueError):
    """A loss did not return one value per example."""


class CallbackError(ResfitError, ValueError):
    """A callback was configured with values that it cannot work with."""


class CallbackCheckError(ResfitError, AssertionError):
    """`resfit.testing.check_callback` found something wrong with a callback; all of it is listed."""


class BlockCheckError(ResfitError, AssertionError):
    """`resfit.testing.check_block`, `check_stem` or `check_norm` found something wrong; all of it is listed."""


class NonFiniteLossError(ResfitError, RuntimeError):
    """A training step's loss was NaN or infinite."""


class MissingPackageError(ResfitError, ImportError):
    """What was asked for needs a package that is not installed."""


class SavedModelError(ResfitError, ValueError):
    """A file is no model saved by resfit, or cannot be rebuilt without help."""


class ExportError(ResfitError, ValueError):
    """A model cannot be exported like that, or at all."""


class CheckpointError(ResfitError, OSError):
    """A checkpoint cannot be written or read, or its folder is taken."""


class ResumeError(ResfitError, ValueError):
    """A run cannot go on from a checkpoint as it was: what differs is named."""


class DistributedError(ResfitError, RuntimeError):
    """Several processes cannot be joined to one run."""


class ProcessFailed(ResfitError, RuntimeError):  # noqa: N818 - it names an event
    """Another process of the run failed, so this one cannot go on either."""


class StepFailed(ResfitError, RuntimeError):  # noqa: N818 - it names an event
    """The device failed while a step ran, and the state it was working on is gone; the module holds an older one."""
