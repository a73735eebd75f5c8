"""Fold batch norms into the convolutions before them: the same function in evaluation, with fewer operations."""

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.nnx.nn.dtypes import promote_dtype
from jax.ad_checkpoint import checkpoint_name
from jax.extend import core

from resfit._utils.keywords import checked
from resfit.errors import ModuleError
from resfit.nets.intercept import intercept
from resfit.nets.modes import in_mode
from resfit.nets.resnet import ResNet

_Module = TypeVar("_Module", bound=nnx.Module)
_CONV, _NORM = "resfit.fold/conv/", "resfit.fold/norm/"  # marks of calls in a program, before the module's path


class FoldedNorm(nnx.Module):
    """The replacement of a folded norm, whose arithmetic is in the convolution before it: returns its input."""

    def __call__(
        self, x: jax.Array, use_running_average: bool | None = None, *, mask: jax.Array | None = None
    ) -> jax.Array:
        """Return x. The other arguments are those of a batch norm."""
        return x


@checked("function arguments")
def fold_batch_norm(module: _Module, example: Any = None) -> _Module:
    """Return a copy of a network whose batch norms are part of the convolutions before them.

    In evaluation the copy computes the same function, up to rounding: `norm(conv(x))` is one convolution with other
    weights and a bias, computed here in float64. A norm is folded if it normalizes the output of a convolution by its
    running statistics, and nothing else uses that output. The norms before the convolutions of pre-activated blocks
    stay, and so does every `GroupNorm`, whose statistics are those of the image, every norm that is stacked for
    `nnx.scan` or `nnx.vmap`, and every norm after a convolution with weight standardization.

    Use the copy for prediction. To train it would train a network without those norms.

    Args:
        module: a `ResNet`, or any module with `nnx.Conv` and batch norms. It is not changed.
        example: a batch of inputs, as arrays or as `jax.ShapeDtypeStruct`; only shapes and dtypes are read. Optional
            for a `ResNet`.

    Returns:
        The copy. It shares all arrays with the module but the folded ones.

    Raises:
        ModuleError: if there is no norm to fold, or the example is missing.

    Example:
        >>> from resfit.nets import ResNetSpec
        >>> net = ResNet(ResNetSpec(depths=(1,), widths=(4,), stem="cifar", num_classes=2), rngs=nnx.Rngs(0))
        >>> folded = fold_batch_norm(net)
        >>> type(folded.stem.norm).__name__, folded.stem.conv.bias.shape
        ('FoldedNorm', (4,))
    """
    if example is None:
        if not isinstance(module, ResNet):
            raise ModuleError(
                f"fold_batch_norm received a {type(module).__name__} and no example. Expected one batch of its inputs, "
                "which shows the norms that follow a convolution. Pass jax.ShapeDtypeStruct((1, height, width, "
                "channels), 'float32')."
            )
        side = module.stem.image_size
        example = jax.ShapeDtypeStruct((1, side, side, module.spec.in_channels), "float32")
    folded = fold_if_possible(module, example)
    if folded is module:
        raise ModuleError(
            f"{type(module).__name__} has no batch norm that is the only user of a convolution's output, so "
            "there is nothing to fold. Expected BatchNorm directly after nnx.Conv; GroupNorm cannot be folded, nor can "
            "layers that are stacked for nnx.scan or nnx.vmap. Use the network as it is."
        )
    return folded


def fold_if_possible(module: _Module, example: Any) -> _Module:
    """Return a copy as `fold_batch_norm` does, or the module itself if there is no norm to fold.

    Args:
        module: any module. It is not changed.
        example: a batch of its inputs, as arrays or as `jax.ShapeDtypeStruct`.
    """
    pairs = _pairs(module, example)
    if not pairs:
        return module
    copy = nnx.clone(module)
    parts = {_name(path): part for path, part in nnx.iter_modules(copy)}
    for norm, conv in pairs.items():
        _fold(parts[conv], parts[norm])
    gone = {id(parts[norm]): FoldedNorm() for norm in pairs}  # `parts` keeps the ids taken
    for part in parts.values():
        _replace(part, gone)
    return copy


def _fold(conv: Any, norm: Any) -> None:
    def wide(variable: Any, otherwise: float) -> np.ndarray[Any, np.dtype[np.float64]]:
        return np.asarray(otherwise if variable is None else variable[...], np.float64)

    gain = wide(norm.scale, 1.0) / np.sqrt(wide(norm.var, 1.0) + norm.epsilon)
    bias = wide(norm.bias, 0.0) + (wide(conv.bias, 0.0) - wide(norm.mean, 0.0)) * gain
    dtype = conv.kernel[...].dtype
    # New Variables: another convolution may share the old kernel.
    conv.kernel = nnx.Param(jnp.asarray(wide(conv.kernel, 0.0) * gain, dtype))
    conv.bias = nnx.Param(jnp.asarray(bias, dtype))
    conv.use_bias = True


def _replace(parent: Any, new: Mapping[int, FoldedNorm]) -> None:
    """Replace the children of a module whose ids are in `new`."""
    for name, child in list(nnx.iter_children(parent)):
        if id(child) not in new:
            continue
        if isinstance(name, int):
            parent[name] = new[id(child)]
        else:
            setattr(parent, str(name), new[id(child)])


def _name(path: tuple[Any, ...]) -> str:
    return ".".join(map(str, path))


# --- pairs of norms and convolutions ----------------------------------------------------------------------------------


def _pairs(module: nnx.Module, example: Any) -> dict[str, str]:
    """Return the convolution to fold each norm into, by dotted path.

    The network is evaluated abstractly, and every call of a convolution or of a norm is marked in the program. The mark
    is all that the program has of a norm's call, so it shows every other use of the convolution's output.
    """
    graphdef, state = nnx.split(module)

    def evaluate(state: Any, x: Any) -> Any:
        copy, mode = in_mode(nnx.merge(graphdef, state), train=False)
        for path, part in nnx.iter_modules(copy):
            _mark(part, _name(path))
        return copy(x, **mode)

    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (state, example))
    found = _Found(Counter(), defaultdict(Counter))
    _look(jax.make_jaxpr(evaluate)(*abstract).jaxpr, found)
    parts: dict[str, Any] = {_name(path): part for path, part in nnx.iter_modules(module)}
    pairs = {}
    for norm, sources in found.norms.items():
        conv, *others = sources
        # A convolution that is called elsewhere too must not change. Layers stacked for nnx.scan or nnx.vmap stay.
        if conv is not None and not others and found.convs[conv] == sources[conv] and parts[norm].mean.ndim == 1:
            pairs[norm] = conv
    return pairs


def _mark(part: Any, name: str) -> None:
    """Mark the calls of a convolution or of a norm; in a private copy."""

    def conv(_: Any, call: Any, *args: Any, **kwargs: Any) -> Any:
        return checkpoint_name(call(*args, **kwargs), _CONV + name)

    def norm(self: Any, call: Any, x: jax.Array, use_running_average: bool | None = None, *, mask: Any = None) -> Any:
        evaluating = self.use_running_average if use_running_average is None else use_running_average
        if evaluating and mask is None and jax.eval_shape(lambda x: call(x, True), x).dtype == x.dtype:
            return checkpoint_name(x, _NORM + name)
        return call(x, use_running_average, mask=mask)

    # Another promote_dtype, as in weight standardization, can change the kernel, and would undo the folding.
    plain = isinstance(part, nnx.Conv) and part.promote_dtype is promote_dtype
    if plain and type(part).__call__ is nnx.Conv.__call__:
        intercept(part, conv)
    elif isinstance(part, nnx.BatchNorm) and part.axis == -1:
        intercept(part, norm)


class _Found(NamedTuple):
    convs: Counter[str]  # number of calls, by convolution
    # Number of calls, by norm, and by the convolution whose output only this norm uses (None: another input).
    norms: dict[str, Counter[str | None]]


def _look(jaxpr: core.Jaxpr, found: _Found) -> None:
    uses = Counter(v for eqn in jaxpr.eqns for v in eqn.invars if isinstance(v, core.Var))
    uses.update(v for v in jaxpr.outvars if isinstance(v, core.Var))
    returned_by: dict[Any, str] = {}
    for eqn, mark in _marks(jaxpr):
        if mark.startswith(_CONV):
            found.convs[mark.removeprefix(_CONV)] += 1
            returned_by[eqn.outvars[0]] = mark.removeprefix(_CONV)
        else:
            x = eqn.invars[0]
            alone = isinstance(x, core.Var) and uses[x] == 1
            found.norms[mark.removeprefix(_NORM)][returned_by.get(x) if alone else None] += 1
    for inner in itertools.chain.from_iterable(core.jaxprs_in_params(eqn.params) for eqn in jaxpr.eqns):
        _look(inner, found)


def _marks(jaxpr: core.Jaxpr) -> Iterator[tuple[Any, str]]:
    for eqn in jaxpr.eqns:
        mark = eqn.params.get("name")
        if eqn.primitive.name == "name" and isinstance(mark, str) and mark.startswith((_CONV, _NORM)):
            yield eqn, mark
