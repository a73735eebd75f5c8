"""Conversion between a network and state dicts with the names of other libraries."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax.numpy as jnp
import numpy as np
from flax import nnx

from resfit._utils.jax_switches import suspending
from resfit._utils.keywords import checked
from resfit.errors import WeightsError
from resfit.nets import ResNet
from resfit.weights import arithmetic, differences
from resfit.weights.differences import without_ignored
from resfit.weights.find import Found, Stored, find, named
from resfit.weights.layouts import Array
from resfit.weights.names import IGNORED
from resfit.weights.public_names import NAMINGS, WRITTEN

Head = Literal["keep", "reset"]
Stem = Literal["keep", "sum", "repeat"]
_CALL = "resfit.weights.load_state_dict(net, state_dict"

Rename = Callable[[str], str] | Mapping[str, str]


@checked("function arguments")
@suspending
def state_dict(module: nnx.Module, *, naming: str | None = None) -> dict[str, Array]:
    """Return a network's parameters and running statistics with the names and layouts of another library.

    Kernels of convolutions become (out, in, height, width) and kernels of dense layers (out, in). PyTorch's
    `num_batches_tracked` is not included.

    Args:
        module: a `resfit.nets.ResNet`.
        naming: the names to use: `"torchvision"` (also for timm's ResNets), `"timm_v2"` for timm's pre-activation
            ResNets, `"timm_senet"` for timm's legacy SE networks, or `"transformers"` (by default, those of timm's
            network with the parts of this one).

    Returns:
        NumPy arrays by name, of the network's dtypes.

    Raises:
        WeightsError: if `naming` is unknown, or has no name for a part of the network.

    Example:
        >>> from resfit.nets import create_model
        >>> weights = state_dict(create_model("resnet20", num_classes=10))
        >>> weights["conv1.weight"].shape
        (16, 3, 3, 3)
    """
    _check_module(module)
    if isinstance(naming, str) and naming in NAMINGS and naming not in WRITTEN:
        raise WeightsError(
            f"Received naming={naming!r}, which is only for reading: networks with these names can compute something "
            f"else. Expected one of {list(WRITTEN)}."
        )
    if isinstance(naming, str) and isinstance(module, ResNet):
        arithmetic.check(naming, module.spec, (), known=True)
    return {name: entry.value() for name, entry in named(module, naming)}


@checked("function arguments")
@suspending
def load_state_dict(
    module: nnx.Module,
    mapping: Mapping[str, Any],
    *,
    naming: str | None = None,
    head: Head = "keep",
    stem: Stem = "keep",
    prefix: str | None = None,
    rename: Rename | None = None,
    ignore: str | Sequence[str] = (),
) -> None:
    """Load parameters and running statistics from a state dict into a network, in place.

    Names and shapes must match exactly; only PyTorch's counts of batches are ignored. The names can be those of any
    library in docs/how-to/weights.md, behind any prefix (`module.`, `backbone.`, `encoder_q.`); other arrays beside
    the prefix are not read. After an error, the network is unchanged. Values are cast to the network's dtypes.

    Args:
        module: a `resfit.nets.ResNet`.
        mapping: arrays by name in the layout of the library: NumPy arrays, or anything that `numpy.asarray` reads, such
            as the tensors of a PyTorch `state_dict()` on the CPU.
        naming: the names in `mapping`: `"torchvision"` (also for timm's ResNets), `"timm_v2"` for timm's pre-activation
            ResNets, `"timm_senet"` for timm's legacy SE networks, `"transformers"` (Hugging Face), `"keras"`, or
            another name in docs/how-to/weights.md (by default, the naming that fits best).
        head: `"keep"` (default) loads the last layer; `"reset"` does not load it, for other classes.
        stem: for another number of input channels, `"sum"` spreads the sum of the first kernel evenly over the
            channels, so that a gray image gives the same result as its copy in every channel; `"repeat"` repeats the
            channels of the kernel, scaled to keep the sum. `"keep"` (default) raises.
        prefix: the text before the names of the network (by default, it is found). Use it to choose one of several
            networks, such as `"module.encoder_q."`.
        rename: a function from a name in `mapping` to a name of the library, or a dict of regular expressions and
            their replacements, in order (default None). It comes before all other arguments.
        ignore: names of parts to leave out, or shell patterns of names, such as `("projector", "queue*")` (default:
            none). A pattern inside the stem or a block of the network raises.

    Raises:
        WeightsError: if names or shapes differ, or if networks with these names compute something else. The message
            has at most ten lines, with the names that were found, the prefix, and the call that loads the rest.

    Example:
        >>> from resfit.nets import create_model
        >>> net, other = (create_model("resnet20", num_classes=10, rngs=seed) for seed in (0, 1))
        >>> load_state_dict(net, state_dict(other))
        >>> bool((net.head.dense.kernel[...] == other.head.dense.kernel[...]).all())
        True
    """
    fill(module, mapping, Options(naming, head, stem, prefix, rename, ignore))


class Options(NamedTuple):
    """The arguments of `load_state_dict`, with the same defaults."""

    naming: str | None = None
    head: Head = "keep"
    stem: Stem = "keep"
    prefix: str | None = None
    rename: Rename | None = None
    ignore: str | Sequence[str] = ()


def fill(
    module: nnx.Module,
    mapping: Mapping[str, Any],
    options: Options,
    *,
    call: str = _CALL,
    known: bool = False,
) -> str:
    """Load a state dict into a network, in place; return the naming of the state dict.

    Args:
        module: the network.
        mapping: the arrays by name.
        options: the other arguments of `load_state_dict`.
        call: the call of the user for errors, without the closing parenthesis.
        known: True if the source of the state dict was compared with the network.

    Raises:
        WeightsError: as `load_state_dict`.
    """
    _check_module(module)
    for argument, choice, choices in (("head", options.head, get_args(Head)), ("stem", options.stem, get_args(Stem))):
        if choice not in choices:
            raise WeightsError(f"Received {argument}={choice!r}. Expected one of {list(choices)}.")
    found, values = selected(module, mapping, options, call)
    if isinstance(module, ResNet):
        arithmetic.check(found.naming, module.spec, mapping, known=known or options.naming is not None)
    if found.naming == "keras":
        values = _folded(values, found.prefix)
    reset = options.head == "reset"
    if reset:
        values = {name: value for name, value in values.items() if not found.is_of_head(name)}
    first = _first_kernel(found.entries)
    if options.stem != "keep" and first in values and values[first].ndim == 4:
        values[first] = _for_channels(values[first], found.entries[first], options.stem)
    values = {name: _squeezed(value, found.entries.get(name)) for name, value in values.items()}
    differences.check(module, found, values, call, reset=reset, names=mapping)
    variables = [(found.entries[name].variable, _inwards(module, found, name, value)) for name, value in values.items()]
    for variable, value in variables:  # after all checks
        variable.set_value(jnp.asarray(value))
    return found.naming


def _inwards(module: nnx.Module, found: Found, name: str, value: Array) -> Array:
    """Return an array of a state dict in the layout and the dtype of the network.

    Raises:
        WeightsError: if the array does not hold real numbers of floating point, or a number is too large.
    """
    path, variable, layout = found.entries[name]
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise WeightsError(
            f"{name} has the dtype {value.dtype}. Expected floating-point numbers. Convert the weights of a quantized "
            "or complex network to float32 first, with the scales of the quantization."
        )
    ours = layout.inwards(value)
    if isinstance(module, ResNet):
        ours = arithmetic.in_order(found.naming, path, ours, module.spec)
    with np.errstate(over="ignore"):
        cast: Array = ours.astype(variable.get_value().dtype)
    if not np.can_cast(ours.dtype, cast.dtype) and (np.isinf(cast) & np.isfinite(ours)).any():
        raise WeightsError(
            f"{name} has the value {np.abs(ours[np.isfinite(ours)]).max():.3g}, which is too large for {cast.dtype}, "
            "the dtype of the network. Expected values in its range. Create the network with param_dtype='float32'."
        )
    return cast


def selected(
    module: nnx.Module, mapping: Mapping[str, Any], options: Options, call: str
) -> tuple[Found, dict[str, Array]]:
    """Return the place of a network in a state dict, and the arrays there and of parts beside a missing last layer."""
    _check_names(mapping)
    if not isinstance(options.prefix, str | None):
        raise WeightsError(
            f"Received prefix={options.prefix!r}. Expected the text before the names of the network, such as "
            "'module.'. Leave prefix out to find it."
        )
    values = {name: value for name, value in mapping.items() if name.rpartition(".")[2] not in IGNORED}
    values = _renamed(values, options.rename)
    if options.prefix and not any(name.startswith(options.prefix) for name in values):
        raise WeightsError(
            f"Received prefix={options.prefix!r}, but no name of the state dict begins so. Expected the beginning of "
            f"names such as {sorted(values)[:5]}. Leave prefix out to find it."
        )
    found = find(module, values, options.naming, options.prefix, call)
    if options.ignore:
        patterns = _patterns(options.ignore)
        values = without_ignored(found, values, patterns)
        found = find(module, values, options.naming, options.prefix, call)
    inside = {name: value for name, value in values.items() if name.startswith(found.prefix) or name in found.entries}
    return found, {name: _array(name, value) for name, value in inside.items()}


def _array(name: str, value: Any) -> Array:
    try:
        return np.asarray(value)
    # NumPy raises ValueError for nested lists of different lengths; PyTorch raises the others.
    except (ValueError, TypeError, RuntimeError) as error:
        raise WeightsError(
            f"The value of {name!r} is a {type(value).__name__}, which NumPy cannot read: {error}. Expected an array. "
            "For a tensor of PyTorch, pass tensor.detach().cpu(), as float32 if its dtype is bfloat16."
        ) from error


def _check_module(module: Any) -> None:
    if not isinstance(module, nnx.Module):
        raise WeightsError(
            f"Received a {type(module).__name__} as the network. Expected a resfit.nets.ResNet. Pass model.module of a "
            "resfit.Model."
        )


def _check_names(mapping: Mapping[str, Any]) -> None:
    """Raise unless a state dict has arrays by name."""
    if not isinstance(mapping, Mapping):
        raise WeightsError(
            f"Received a {type(mapping).__name__} as the state dict. Expected a dict of arrays by name, such as "
            "resfit.weights.read(path) or net.state_dict() in PyTorch. For a file, call resfit.weights.load(net, path)."
        )
    if wrong := [name for name in mapping if not isinstance(name, str)]:
        raise WeightsError(f"The state dict has the names {wrong[:3]}. Expected texts. Pass the arrays by their names.")
    if nested := [name for name, value in mapping.items() if isinstance(value, Mapping)]:
        raise WeightsError(
            f"The entries {nested[:5]} of the state dict are dicts. Expected arrays by name. Pass the dict with the "
            f"arrays, such as checkpoint[{nested[0]!r}]."
        )


def _patterns(ignore: str | Sequence[str]) -> tuple[str, ...]:
    """Return the patterns of `ignore=` as a tuple.

    Raises:
        WeightsError: if it is neither a text nor a sequence of texts.
    """
    patterns = (ignore,) if isinstance(ignore, str) else ignore
    if not isinstance(patterns, Sequence) or not all(isinstance(pattern, str) for pattern in patterns):
        raise WeightsError(
            f"Received ignore={ignore!r}. Expected the name of a part, or a tuple of names or shell patterns, such as "
            "('projector', 'queue*')."
        )
    return tuple(patterns)


def _renamed(values: Mapping[str, Any], rename: Rename | None) -> dict[str, Any]:
    """Return the arrays by their new names.

    Raises:
        WeightsError: if two arrays get one name, or a new name is not a text.
    """
    if rename is None:
        return dict(values)
    if not callable(rename) and not isinstance(rename, Mapping):
        raise WeightsError(
            f"Received rename={rename!r}. Expected a function of a name, or a dict of regular expressions and their "
            "replacements, such as {r'^encoder\\.': ''}."
        )
    pairs = rename if isinstance(rename, Mapping) else None
    result: dict[str, Any] = {}
    for name, value in values.items():
        new: Any = name
        if pairs is None:
            new = rename(name)  # type: ignore[operator]
        else:
            for pattern, replacement in pairs.items():
                new = _substituted(pattern, replacement, new)
        if not isinstance(new, str) or new in result:
            raise WeightsError(
                f"rename gave {name!r} the name {new!r}. Expected a text, and a different one for every array. Use "
                "ignore= to leave arrays out."
            )
        result[new] = value
    return result


def _substituted(pattern: str, replacement: str, name: str) -> str:
    try:
        return re.sub(pattern, replacement, name)
    except (re.error, TypeError) as error:
        raise WeightsError(
            f"Received rename={{{pattern!r}: {replacement!r}, ...}}, which does not work: {error}. Expected a regular "
            "expression and its replacement, as in re.sub. Escape special characters with re.escape."
        ) from error


def _squeezed(value: Array, entry: Stored | None) -> Array:
    """Return an array of the expected shape if only axes of one entry differ, as of a 1x1 kernel and a dense layer."""
    if entry is None or value.ndim == len(entry.shape):
        return value
    same = [n for n in value.shape if n > 1] == [n for n in entry.shape if n > 1]
    return value.reshape(entry.shape) if same else value


def _folded(values: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    """Fold the arrays of Keras, whose names have a prefix."""
    inside = {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
    beside = {name: value for name, value in values.items() if not name.startswith(prefix)}
    return {prefix + name: value for name, value in arithmetic.folded(inside).items()} | beside


def first_kernel_channels(module: nnx.Module, mapping: Mapping[str, Any], call: str) -> int | None:
    """Return the number of input channels of a state dict's first kernel, or None if the kernel is not found."""
    found, values = selected(module, mapping, Options(), call)
    first = _first_kernel(found.entries)
    if first not in values or np.ndim(values[first]) != 4:
        return None
    return int(np.shape(values[first])[found.entries[first].channel_axis])


def _first_kernel(entries: Mapping[str, Stored]) -> str:
    """Return the name of the kernel that reads the image, or an empty string if no kernel does."""
    return next((name for name, entry in entries.items() if entry.is_first_kernel), "")


def _for_channels(kernel: Array, entry: Stored, stem: Stem) -> Array:
    """Adapt the first kernel, in the other library's layout, to the network's number of channels."""
    axis = entry.channel_axis
    given, wanted = kernel.shape[axis], entry.shape[axis]
    if given == wanted:
        return kernel
    exact = kernel.astype("f8")
    if stem == "sum":
        spread: Array = np.repeat(exact.sum(axis, keepdims=True) / wanted, wanted, axis)
        return spread
    repeated: Array = exact.take(np.arange(wanted) % given, axis) * (given / wanted)
    return repeated
