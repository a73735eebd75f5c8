"""All errors of resfit.

Each message says what happened with the received values, what was expected, and how to fix it. All errors derive from
`ResfitError` and from a built-in exception, so that `except ValueError` works.
"""

import pickle


class ResfitError(Exception):
    """Base class of all errors of resfit."""


# --- networks ---------------------------------------------------------------------------------------------------------


class ShortcutShapeError(ResfitError, ValueError):
    """A residual block cannot add its branch to its shortcut: their shapes differ. Raised when the block is built."""


class BlockError(ResfitError, TypeError):
    """A residual block is invalid: it bypasses the addition, or its parts are not modules."""


class InputShapeError(ResfitError, ValueError):
    """Base class of errors about the shape of an input."""


class RankError(InputShapeError):
    """The input is not a batch of images (batch, height, width, channels)."""


class ChannelError(InputShapeError):
    """The input has another number of channels than the network."""


class LayoutError(ChannelError):
    """The input has the layout (batch, channels, height, width); networks of resfit take NHWC."""


class ImageTooSmallError(InputShapeError):
    """The stem or a stage would shrink the image to nothing."""


class StemWarning(UserWarning):
    """A small image enters a stem for large images and loses most of its detail before the first block."""


class SpecError(ResfitError, ValueError):
    """A network specification is inconsistent, or the name of a network is unknown."""


class WeightsError(ResfitError, ValueError):
    """A state dict does not fit the network; the message lists missing and unexpected entries and wrong shapes."""


# --- training ---------------------------------------------------------------------------------------------------------


class CompileError(ResfitError, ValueError):
    """An argument of `Model.compile` is invalid, alone or together with the other arguments."""


class NotCompiledError(ResfitError, RuntimeError, AttributeError):
    """A method or attribute of a `Model` was used before `compile`. An AttributeError, so that `hasattr` works."""


class BusyError(ResfitError, RuntimeError):
    """A model was to be trained or compiled while another thread trains it."""


class ModuleError(ResfitError, TypeError):
    """The module cannot be trained: it is not an nnx.Module, or a call changes its structure."""


class OverrideError(ResfitError, AttributeError):
    """A name of another library was read from a `Model`, or set by a subclass or an assignment, and resfit lacks it."""


class ArgumentError(ResfitError, TypeError):
    """A function was called with an argument that it does not have; the message names the one to use."""


class DataError(ResfitError, ValueError):
    """The dataset is empty, has parts of unequal length, or is of a type that resfit cannot read."""


class BadRecordError(DataError):
    """One record of a stream cannot be used: an image that does not decode, or a label that is missing."""


class DownloadError(ResfitError, OSError):
    """A dataset or a weights file could not be downloaded, or is not the published file."""


class HubError(ResfitError, OSError):
    """A model cannot be uploaded to the Hugging Face hub or downloaded from it: no token, repository or network."""


class LabelError(DataError):
    """The labels do not fit the outputs: their values are out of range, or their shape is wrong or ambiguous."""


class LossError(ResfitError, ValueError):
    """A loss did not return one value per example."""


class CallbackError(ResfitError, ValueError):
    """An argument of a callback is invalid."""


class CallbackCheckError(ResfitError, AssertionError):
    """`resfit.testing.check_callback` found problems in a callback; the message lists all of them."""


class BlockCheckError(ResfitError, AssertionError):
    """`resfit.testing.check_block`, `check_stem` or `check_norm` found problems; the message lists all of them."""


class NonFiniteLossError(ResfitError, RuntimeError):
    """A training step's loss was NaN or infinite."""


class MissingPackageError(ResfitError, ImportError):
    """An optional package is not installed."""


class SavedModelError(ResfitError, ValueError):
    """A file is not a model file of resfit, is damaged, or needs an argument to be loaded."""


class PickleError(ResfitError, pickle.PicklingError):
    """An object cannot be pickled, or the pickle is of other versions of the packages; the message names the part."""


class ExportError(ResfitError, ValueError):
    """A model cannot be exported, or an argument of the export is invalid."""


class CheckpointError(ResfitError, OSError):
    """A checkpoint cannot be written or read, or another run uses its folder."""


class ResumeError(ResfitError, ValueError):
    """A run cannot resume from a checkpoint; the message names the differences."""


class DistributedError(ResfitError, RuntimeError):
    """Several processes cannot be connected to one run."""


class ProcessFailed(ResfitError, RuntimeError):  # noqa: N818 - it names an event
    """Another process of the run failed, so this process stops too."""


class StepFailed(ResfitError, RuntimeError):  # noqa: N818 - it names an event
    """The device failed during a step and the state of that step is lost; the module holds an older state."""
