"""`Residual`: the base class of every block. It adds a branch to its shortcut and applies the activation."""

import functools
from collections.abc import Callable, Iterable
from typing import Any, final

import jax
import jax.numpy as jnp
from einops import EinopsError
from flax import nnx

from resfit.backends.cpu_barrier import materialize_on_cpu
from resfit.errors import BlockError, ShortcutShapeError
from resfit.nets.layers import Layers
from resfit.nets.modes import in_mode, mode_keywords
from resfit.nets.registry import SHORTCUTS
from resfit.nets.shortcut import IdentityShortcut
from resfit.nets.squeeze import make_gate

# Each axis is even in one image and odd in the other. If the branch rounds a halved size down and the shortcut rounds
# it up, they differ on one of the two.
PROBE_SIZES = ((64, 65), (65, 64))


class Residual(nnx.Module):
    """A residual block, `activation(branch(x) + shortcut(x))` (He et al. 2015, arXiv:1512.03385).

    A subclass defines only its branch. `Residual` provides the addition, the activation, every shortcut, squeeze and
    excitation, and stochastic depth. The constructor evaluates branch and shortcut abstractly, without arithmetic, so
    different shapes raise when the block is built, not in the first training step.

    Args:
        branch: the residual function, a module from (batch, height, width, in_channels) to any image. Its `__call__`
            can take `train` (or `training`, `deterministic`, `use_running_average`), or rely on NNX modes.
        shortcut: the shortcut if the branch changes the shape; otherwise every option is the identity. `"auto"`
            (default) and `"B"`: a strided 1x1 convolution with a norm; `"A"`: a strided slice padded with channels of
            zeros; `"D"`: average pooling, a 1x1 convolution and a norm; `"B3"`: `"B"` with 3x3 pixels where the branch
            steps; `"conv"` and `"D_conv"`: `"B"` and `"D"` without the norm; `"identity"`: an error. A custom module is
            always used.
        activation: the function after the addition (default ReLU).
        before: a module that keeps the shape and pre-activates the block (default None). The branch and every shortcut
            except the identity receive its output (He et al. 2016, arXiv:1603.05027, figure 1b).
        squeeze: ratio of a `SqueezeExcite` after the branch, or `"eca"` for an `EfficientChannelAttention` (default
            None: neither).
        drop_path: probability that an image skips the branch in training; the branches of the other images are scaled
            up to compensate (stochastic depth, Huang et al. 2016, arXiv:1603.09382). Default 0.
        dilation: dilation of the branch, for shortcuts that depend on it (default 1).
        in_channels: channels of the input.
        layers: dtypes and kind of norm of a projection (default float32).
        rngs: keys for the initial values of a projection, squeeze and excitation or stochastic depth; otherwise not
            needed.

    Raises:
        ShortcutShapeError: if branch and shortcut differ in shape, or if the branch does not accept images of
            `in_channels` channels.
        BlockError: if branch or shortcut is not a module, or if a subclass defines its own `__call__`.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> rngs = nnx.Rngs(0)
        >>> branch = nnx.Conv(4, 8, (3, 3), strides=2, padding=1, rngs=rngs)
        >>> block = Residual(branch, in_channels=4, rngs=rngs)
        >>> type(block.shortcut).__name__
        'ProjectionShortcut'
        >>> block(jnp.ones((1, 7, 7, 4))).shape
        (1, 4, 4, 8)
    """

    is_block = True  # for `nets.probe.parts`

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__call__" in vars(cls):
            raise BlockError(
                f"{cls.__name__} defines __call__, which would bypass the addition and the activation of Residual. "
                "Expected the block's own computation in a branch. Move it into a module and pass that to "
                "super().__init__(branch, ...)."
            )

    def __init__(
        self,
        branch: nnx.Module,
        shortcut: str | nnx.Module = "auto",
        activation: Callable[[jax.Array], jax.Array] = nnx.relu,
        *,
        before: nnx.Module | None = None,
        squeeze: float | str | None = None,
        drop_path: float = 0.0,
        dilation: int = 1,
        in_channels: int,
        layers: Layers | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> None:
        block = type(self).__name__
        probes, branch_shapes = _probe(branch, in_channels, block)
        if isinstance(shortcut, str):
            shortcut = _build_shortcut(shortcut, probes, branch_shapes, block, dilation, layers, rngs)
        shortcut_shapes = _output_shapes(shortcut, "shortcut", probes, block)
        for probe, branch_shape, shortcut_shape in zip(probes, branch_shapes, shortcut_shapes, strict=True):
            if shortcut_shape != branch_shape:
                raise ShortcutShapeError(
                    f"{block} cannot add its branch to its shortcut: an input of shape {probe.shape} leaves the branch "
                    f"as {branch_shape} and {type(shortcut).__name__} as {shortcut_shape}. Expected equal shapes. Use "
                    "shortcut='auto', which projects where shapes differ, or make strides, padding and channels agree."
                )
        self.out_channels = branch_shapes[0][-1]
        self.before = before
        self.branch = branch
        self.shortcut = shortcut
        self.activation = activation
        if rngs is None and (squeeze is not None or drop_path):
            raise BlockError(
                f"{block} received squeeze={squeeze}, drop_path={drop_path} and no rngs. Pass nnx.Rngs(0)."
            )
        gate: Any = make_gate(self.out_channels, squeeze, layers=layers, rngs=rngs) if squeeze and rngs else None
        self.squeeze = gate
        # One draw for each image, which drops the whole branch.
        drop = nnx.Dropout(drop_path, broadcast_dims=(1, 2, 3), deterministic=True, rngs=rngs) if drop_path else None
        self.drop_path = drop

    @final
    def __call__(self, x: jax.Array, *, train: bool | None = None) -> jax.Array:
        """Return activation(branch(x) + shortcut(x)).

        Args:
            x: images (batch, height, width, in_channels).
            train: True or False sets the mode of every norm and dropout inside; None (default) leaves them in their own
                NNX modes.

        Returns:
            (batch, ceil(height / stride), ceil(width / stride), out_channels).
        """
        activated = x if self.before is None else _call(self.before, x, train)
        branch = _call(self.branch, activated, train)
        if self.squeeze is not None:
            branch = self.squeeze(branch)
        if self.drop_path is not None:
            branch = _call(self.drop_path, branch, train)
        passed_on = x if isinstance(self.shortcut, IdentityShortcut) else activated
        return materialize_on_cpu(self.activation(branch + _call(self.shortcut, passed_on, train)))


def _call(module: nnx.Module, x: jax.Array, train: bool | None) -> jax.Array:
    callee, mode = in_mode(module, train)
    output: jax.Array = callee(x, **mode)
    return output


def _probe(
    branch: nnx.Module, in_channels: int, block: str
) -> tuple[list[jax.ShapeDtypeStruct], list[tuple[int, ...]]]:
    """Return images that reveal how the branch rounds sizes, and the output shapes for these images."""

    def images(sizes: Iterable[tuple[int, int]]) -> list[jax.ShapeDtypeStruct]:
        return [jax.ShapeDtypeStruct((1, *size, in_channels), jnp.float32) for size in sizes]

    probes = images(PROBE_SIZES)
    shapes = _output_shapes(branch, "branch", probes, block)
    # A step over s pixels rounds in s ways, so s consecutive sizes are needed. PROBE_SIZES has two.
    first = min(PROBE_SIZES[0])
    step = max((-(-first // size) for size in shapes[0][1:3] if size), default=1)
    more = images((size, size) for size in range(first + 2, first + step))
    return probes + more, shapes + (_output_shapes(branch, "branch", more, block) if more else [])


def _evaluate(graphdef: nnx.GraphDef[Any], state: Any, images: list[jax.Array]) -> list[Any]:
    module: Any = nnx.merge(graphdef, state)
    return [module(x, **mode_keywords(module, train=False)) for x in images]


_evaluate_once = jax.jit(_evaluate, static_argnums=0)  # equal blocks of a network share one trace


def _abstract_outputs(graphdef: nnx.GraphDef[Any], state: Any, images: list[jax.ShapeDtypeStruct]) -> list[Any]:
    try:
        hash(graphdef)
    except TypeError:  # an attribute without a hash, such as a set
        outputs: list[Any] = jax.eval_shape(functools.partial(_evaluate, graphdef), state, images)
    else:
        outputs = _evaluate_once.eval_shape(graphdef, state, images)
    return outputs


def _output_shapes(module: object, role: str, probes: list[jax.ShapeDtypeStruct], block: str) -> list[tuple[int, ...]]:
    """Return the output shapes of a module by abstract evaluation of a copy, which computes and changes nothing."""
    if not isinstance(module, nnx.Module) or not callable(module):
        raise BlockError(
            f"{block} received a {type(module).__name__} as its {role}. Expected an nnx.Module with a __call__. Wrap "
            "functions in a module, for example nnx.Sequential(f)."
        )
    graphdef, state = nnx.split(module)
    # Shapes only: inside an outer abstract evaluation the values are tracers.
    state = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)

    try:
        outputs = _abstract_outputs(graphdef, state, probes)
    except (TypeError, ValueError, EinopsError) as error:
        raise ShortcutShapeError(
            f"{block} received a {role}, {type(module).__name__}, that cannot take inputs of shape {probes[0].shape} "
            f"and {probes[1].shape}: {error}. Expected a module from images of {probes[0].shape[-1]} channels to "
            f"images. Build the {role} for that many channels, or give the block the in_channels that its input has."
        ) from error
    if not all(isinstance(output, jax.ShapeDtypeStruct) for output in outputs):
        raise ShortcutShapeError(
            f"{block} received a {role}, {type(module).__name__}, that returns {jax.tree.structure(outputs[0])}. "
            "Expected one array, which is what can be added. Return only the image."
        )
    return [tuple(output.shape) for output in outputs]


def _build_shortcut(
    option: str,
    probes: list[jax.ShapeDtypeStruct],
    branch_shapes: list[tuple[int, ...]],
    block: str,
    dilation: int,
    layers: Layers | None,
    rngs: nnx.Rngs | None,
) -> nnx.Module:
    """Return the shortcut of an option, for a branch with these output shapes."""
    if option not in ("auto", "identity", *SHORTCUTS):
        raise BlockError(
            f"{block} received shortcut={option!r}. Expected one of {['auto', 'identity', *SHORTCUTS]}, or an "
            "nnx.Module. Use 'auto' for the identity where shapes agree and a projection elsewhere."
        )
    if option == "identity" or all(probe.shape == shape for probe, shape in zip(probes, branch_shapes, strict=True)):
        return IdentityShortcut()
    strides = _strides(probes, branch_shapes, block)
    option = "B" if option == "auto" else option
    if rngs is None and option != "A":
        raise ShortcutShapeError(
            f"{block} needs a projection: an input of shape {probes[0].shape} leaves the branch as {branch_shapes[0]}. "
            "Expected rngs for its initial weights. Pass rngs=nnx.Rngs(0), or use shortcut='A'."
        )
    try:
        return SHORTCUTS[option](
            probes[0].shape[-1],
            branch_shapes[0][-1],
            strides=strides,
            dilation=dilation,
            layers=layers or Layers(),
            rngs=rngs or nnx.Rngs(0),
        )
    except ShortcutShapeError as error:
        raise ShortcutShapeError(f"{block} cannot use shortcut={option!r}. {error}") from error


def _strides(probes: list[jax.ShapeDtypeStruct], branch_shapes: list[tuple[int, ...]], block: str) -> tuple[int, int]:
    """Return the strides of a 1x1 convolution with the branch's output sizes, ceil(size / stride), on every probe."""
    if all(len(shape) == 4 for shape in branch_shapes):
        axes = [[(p.shape[axis], s[axis]) for p, s in zip(probes, branch_shapes, strict=True)] for axis in (1, 2)]
        found = [
            next((k for k in range(1, min(PROBE_SIZES[0]) + 1) if all(-(-n // k) == m for n, m in sizes)), None)
            for sizes in axes
        ]
        if found[0] is not None and found[1] is not None:
            return found[0], found[1]
    raise ShortcutShapeError(
        f"{block} cannot add its branch to any shortcut: inputs of shape {[p.shape for p in probes]} leave the branch "
        f"as {branch_shapes}. Expected images of ceil(size / stride) pixels. Give the branch's convolutions an odd "
        "kernel and padding=kernel // 2 on both sides."
    )
