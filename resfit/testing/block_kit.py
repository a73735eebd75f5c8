"""Test kits that put a block, a stem or a norm through everything that a network does with it."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from resfit._utils.checks import is_int
from resfit.nets.layers import Layers
from resfit.nets.recompute import recomputed
from resfit.nets.registry import MakeBlock, MakeNorm, MakeStem
from resfit.nets.residual import Residual
from resfit.nets.shortcut import IdentityShortcut
from resfit.testing.calls import Convention, Effect, abstract, called, named
from resfit.testing.centres import check_centres
from resfit.testing.findings import Findings, PartReport, Wrong, name_of

_SIZES = ((16, 16), (15, 17), (9, 8))  # even and odd on each axis
_WIDTH = 8


def check_block(build: MakeBlock, *, width: int = _WIDTH, **arguments: Any) -> PartReport:
    """Check a block for `BLOCKS.register`: shapes, dtypes, modes, parameters and pixel centers.

    The checks are:

    - The block is a `Residual`.
    - Its output has ceil(size / strides) pixels, and the same number of channels for every input.
    - It uses the dtypes of `layers`.
    - It changes nothing in evaluation and right after it is built, and every statistic in training.
    - The output depends on all parameters.
    - It can be recomputed for its gradient.
    - Its branch is centered on the pixels of its shortcut.

    Most checks use abstract evaluation, so the call takes a few seconds.

    Args:
        build: the registered class or function (in_channels, width, *, strides, layers, rngs, ...) -> block.
        width: the width of the block (default 8).
        **arguments: more arguments of `build`, such as `groups=2`.

    Returns:
        The report, if there are no problems.

    Raises:
        BlockCheckError: if there are problems; the message lists all of them.

    Example:
        >>> from resfit.nets import Residual
        >>> class Shifted(Residual):
        ...     def __init__(self, in_channels, width, *, strides, layers, rngs):
        ...         branch = nnx.Conv(in_channels, width, (3, 3), strides, dtype=layers.dtype, rngs=rngs)
        ...         super().__init__(branch, in_channels=in_channels, layers=layers, rngs=rngs)
        >>> check_block(Shifted)
        Traceback (most recent call last):
        resfit.errors.BlockCheckError: Shifted: 1 problem(s).
        - output pixel 1 along the height depends on the input pixels 2 to 4, whose center is 1 pixels from pixel 2...
    """
    found = Findings(name_of(build))

    def built(in_channels: int, strides: int, **layers: Any) -> Any:
        return build(in_channels, width, strides=strides, layers=Layers(**layers), rngs=nnx.Rngs(0), **arguments)

    out = 0
    with found.check("building it"):
        first = nnx.eval_shape(lambda: built(width, 1))
        if not isinstance(first, Residual):
            raise Wrong(
                f"it is a {type(first).__name__}. Expected a resfit.nets.Residual, which adds the shortcut. Pass the "
                "branch to super().__init__(branch, in_channels=in_channels, layers=layers, rngs=rngs)"
            )
        out = first.out_channels
    if not out:
        return found.report()
    cases = [(strides, n) for strides in (1, 2) for n in (out, max(out // 2, 1))]
    for strides, in_channels in cases:
        with found.check(f"shapes with strides={strides} from {in_channels} channels"):
            block = nnx.eval_shape(lambda strides=strides, n=in_channels: built(n, strides))
            _check_shapes(block, in_channels, (strides,), out, "pass strides to one of its convolutions")
    for strides, in_channels in ((1, out), (2, max(out // 2, 1))):
        _check_dtypes(found, lambda strides=strides, n=in_channels, **layers: built(n, strides, **layers), in_channels)
        with found.check(f"modes and parameters with strides={strides}"):
            block = nnx.eval_shape(lambda strides=strides, n=in_channels: built(n, strides))
            _check_modes(block, _by_train, in_channels)
        with found.check(f"recomputing it for its gradient with strides={strides}"):
            _recompute(block, in_channels)
        with found.check(f"pixel centers with strides={strides}"):
            _look(found, build, (in_channels, width), strides, arguments)
    return found.report()


def check_stem(build: MakeStem, *, width: int = 16, in_channels: int = 3, **arguments: Any) -> PartReport:
    """Check a stem for `STEMS.register`, as `check_block` checks a block.

    A stem must have `strides`, the strides of its layers in order, and `image_size`, the pixels per side of the images
    that it is made for.

    Args:
        build: the registered class or function (in_channels, width, *, layers, rngs, ...) -> stem.
        width: the number of output channels (default 16).
        in_channels: the number of input channels (default 3).
        **arguments: more arguments of `build`.

    Returns:
        The report, if there are no problems.

    Raises:
        BlockCheckError: if there are problems; the message lists all of them.

    Example:
        >>> from resfit.nets import CifarStem
        >>> check_stem(CifarStem).notes
        ()
    """
    found = Findings(name_of(build))

    def built(**layers: Any) -> Any:
        return build(in_channels, width, layers=Layers(**layers), rngs=nnx.Rngs(0), **arguments)

    strides: tuple[int, ...] = ()
    with found.check("its attributes"):
        stem = nnx.eval_shape(built)
        strides = getattr(build, "strides", None)  # type: ignore[assignment]
        image_size = getattr(build, "image_size", None)
        if not isinstance(strides, tuple) or not all(is_int(s, 1) for s in strides):
            strides = ()
            raise Wrong(
                f"{name_of(build)}.strides is {getattr(build, 'strides', None)!r}. Expected the strides of its layers, "
                "such as strides: ClassVar = (2, 2), which a network needs to detect images that are too small"
            )
        if not is_int(image_size, 1):
            raise Wrong(f"{name_of(build)}.image_size is {image_size!r}. Expected the pixels per side, such as 224")
    with found.check("shapes"):
        _check_shapes(stem, in_channels, strides, width, "set `strides` to the strides of its layers")
    _check_dtypes(found, built, in_channels)
    with found.check("modes and parameters"):
        _check_modes(stem, _by_train, in_channels)
    with found.check("pixel centers"):
        real: Any = build(in_channels, width, layers=Layers(), rngs=nnx.Rngs(0), **arguments)
        step = math.prod(strides)
        note = check_centres(real, lambda m, x: m(x, train=False), in_channels, step, (12 * step + 8, 12 * step + 7))
        found.notes += [note] if note else []
    return found.report()


def check_norm(build: MakeNorm, *, channels: int = 32) -> PartReport:
    """Check a norm for `NORMS.register`: shape, dtypes, modes, initial values and independence of images.

    Args:
        build: the registered function (channels, *, zero_scale, layers, rngs) -> norm.
        channels: the number of channels (default 32).

    Returns:
        The report, if there are no problems.

    Raises:
        BlockCheckError: if there are problems; the message lists all of them.

    Example:
        >>> from resfit.nets import NORMS
        >>> check_norm(NORMS["group"]).notes
        ()
    """
    found = Findings(name_of(build))

    def built(*, zero_scale: bool = False, **layers: Any) -> Any:
        return build(channels, zero_scale=zero_scale, layers=Layers(**layers), rngs=nnx.Rngs(0))

    norm = None
    with found.check("shapes"):
        norm = nnx.eval_shape(built)
        _check_shapes(norm, channels, (1,), channels, "keep the shape", call=_by_position)
    if norm is None:
        return found.report()
    _check_dtypes(found, built, channels, call=_by_position)
    with found.check("modes and parameters"):
        _check_modes(norm, _by_position, channels)
    x = np.random.default_rng(0).normal(size=(3, 4, 5, channels)).astype(np.float32)
    with found.check("a scale that starts at zero"):
        zero = np.asarray(built(zero_scale=True)(jnp.asarray(x), False))
        if zero.any():
            raise Wrong("with zero_scale=True a new norm returns other values than zero. Expected a scale of zero")
    with found.check("evaluation of an image in a batch"):
        real = built()
        alone, among = (np.asarray(real(jnp.asarray(batch), True))[0] for batch in (x[:1], x))
        if not np.allclose(alone, among, atol=1e-5):
            raise Wrong("in evaluation the output of an image depends on the other images. Expected running statistics")
    return found.report()


def _by_train(part: Any, x: jax.Array, train: bool | None) -> Any:
    """Call a part as a network calls its stem and its blocks."""
    return part(x, train=train)


def _by_position(norm: Any, x: jax.Array, train: bool | None) -> Any:
    """Call a norm as a block calls its norms."""
    return norm(x, None if train is None else not train)


def _image(size: tuple[int, int], channels: int, dtype: str = "float32") -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((2, *size, channels), jnp.dtype(dtype))


def _check_shapes(
    part: Any, in_channels: int, strides: Iterable[int], out: int, remedy: str, call: Convention = _by_train
) -> None:
    for size in _SIZES:
        expected = size
        for step in strides:
            expected = (-(-expected[0] // step), -(-expected[1] // step))
        for train in (False, True):
            x = _image(size, in_channels)
            shape = called(part, call, x, train).output.shape
            if shape != (2, *expected, out):
                raise Wrong(
                    f"it returns {shape} for images of shape {x.shape}. Expected {(2, *expected, out)}: ceil(size / "
                    f"stride) pixels of {out} channels. Remedy: {remedy}"
                )


def _check_dtypes(found: Findings, built: Callable[..., Any], in_channels: int, call: Convention = _by_train) -> None:
    with found.check("dtypes"):
        half = nnx.eval_shape(lambda: built(dtype="bfloat16"))
        dtype = called(half, call, _image((9, 8), in_channels, "bfloat16"), True).output.dtype
        if dtype != jnp.bfloat16:
            raise Wrong(
                f"with layers of dtype bfloat16 it returns {dtype}. Expected bfloat16. Build its layers with "
                "layers.conv and layers.norm, or pass dtype=layers.dtype to custom layers"
            )
        wide = {name for name, leaf in named(half, nnx.Variable).items() if _is_float(leaf, jnp.bfloat16)}
        if wide:
            raise Wrong(
                f"with layers of dtype bfloat16 it stores {sorted(wide)} in bfloat16. Expected float32: "
                "layers.param_dtype is the dtype of parameters, and statistics are always float32"
            )


def _is_float(leaf: Any, dtype: Any) -> bool:
    return bool(leaf.get_raw_value().dtype == dtype)


def _check_modes(part: Any, call: Convention, in_channels: int) -> None:
    x = _image((9, 8), in_channels)
    calls: dict[bool | None, Effect] = {train: called(part, call, x, train) for train in (False, None, True)}
    if calls[False].changed:
        raise Wrong(
            f"a call in evaluation (train=False) changes {sorted(calls[False].changed)}. Expected no change. Pass the "
            "mode of the call to its norms and dropout"
        )
    if calls[None].changed:
        raise Wrong(
            f"a call without a mode changes {sorted(calls[None].changed)}. Expected evaluation mode. Build norms with "
            "layers.norm, and pass deterministic=True to nnx.Dropout"
        )
    moving = named(part, (nnx.BatchStat, nnx.RngCount)).keys()
    if still := sorted(moving - calls[True].changed):
        raise Wrong(
            f"a call in training (train=True) does not change {still}. Expected every call to update statistics and to "
            "draw dropout. Pass the mode of the call to them, and remove layers that are not called"
        )
    if made := sorted(calls[True].made):
        raise Wrong(f"a call creates the variables {made}. Expected all variables to be created when it is built")
    if unused := sorted(calls[True].unused):
        raise Wrong(f"its output does not depend on {unused}. Expected no unused parameters")


def _recompute(block: Any, in_channels: int) -> None:
    graph, state = nnx.split(block)

    def gradient(state: Any, x: jax.Array) -> jax.Array:
        def output(x: jax.Array) -> jax.Array:
            copy = nnx.clone(nnx.merge(graph, state))
            total: jax.Array = recomputed(lambda m, x: m(x, train=True), copy, x).sum()
            return total

        found: jax.Array = jax.grad(output)(x)
        return found

    jax.eval_shape(gradient, abstract(state), _image((9, 8), in_channels))


def _look(
    found: Findings, build: MakeBlock, channels: tuple[int, int], strides: int, arguments: Mapping[str, Any]
) -> None:
    block: Any = build(*channels, strides=strides, layers=Layers(), rngs=nnx.Rngs(0), **arguments)

    def branch(block: Any, x: jax.Array) -> jax.Array:
        before = x if block.before is None else block.before(x)
        output: jax.Array = block.branch(before)
        return output

    def shortcut(block: Any, x: jax.Array) -> jax.Array:
        output: jax.Array = block.shortcut(x)
        return output

    block.eval()
    notes = [check_centres(block, branch, channels[0], strides, (24, 23))]
    if not isinstance(block.shortcut, IdentityShortcut):
        notes.append(check_centres(block, shortcut, channels[0], strides, (24, 23)))
    found.notes += [note for note in notes if note]
