"""Plans of oneDNN for convolutions of known shapes: the primitives, built once, and the reorderings around them."""

import collections
import contextlib
import ctypes
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from resfit.backends.onednn.bridge import ALIGNMENT, Argument, Bridge, Buffer, Memory, NativeCall, NativePlan

# Numbers of dnnl_types.h, the same in all versions of its third interface.
_TRAINING, _DIRECT, _ANY, _UNDEFINED = 64, 1, 1, 0
_SCRATCHPAD_OF_USER = 1
_QUERY_IMPLEMENTATION, _QUERY_SCRATCHPAD = 8, 136
_SRC, _DST, _WEIGHTS = 1, 17, 33
_DIFF_SRC, _DIFF_DST, _DIFF_WEIGHTS = 129, 145, 161
_QUERY_MD = {_WEIGHTS: 131, _DIFF_WEIGHTS: 132}  # the preferred layout of the array in a role
_SCRATCHPAD = 80
_FROM, _TO = 1, 17
_POST_OPERATION, _SECOND = 32768, 2  # the role of an array of the i-th operation after a primitive: (i + 1) * the first
DTYPES = {"float32": (3, 11, 4), "bfloat16": (2, 16, 2)}  # oneDNN's number, XLA's, bytes
_BYTES_XLA = 6  # XLA's number for uint8
_NO_BUFFER = -1  # the buffer of a memory with its own data

FORWARD, DATA, WEIGHTS = "forward", "data gradient", "weight gradient"

# The arrays of a convolution, with their roles, in the order of XLA's arguments and result.
_ROLES = {
    FORWARD: (("image", _SRC), ("kernel", _WEIGHTS), ("output", _DST)),
    DATA: (("output", _DIFF_DST), ("kernel", _WEIGHTS), ("image", _DIFF_SRC)),
    WEIGHTS: (("image", _SRC), ("output", _DIFF_DST), ("kernel", _DIFF_WEIGHTS)),
}

# Operations of oneDNN on each result of a forward convolution, before it is written. SCALE and SHIFT read a value for
# each channel. ADD adds the content of the result's buffer: a separate buffer cost as much as XLA's addition.
SCALE, SHIFT, ADD, RELU = "scale", "shift", "add", "relu"
_BINARY = {SCALE: 0x1FFF1, SHIFT: 0x1FFF0}  # the numbers of their algorithms
_ZERO = ctypes.c_float(0)


class Shape(NamedTuple):
    """The sizes of a convolution of images, and everything else that decides its plan.

    Attributes:
      direction: FORWARD: images and kernel -> output; DATA: output's gradient and kernel -> images' gradient; WEIGHTS:
        images and output's gradient -> kernel's gradient.
      image: (n, h, w, c) of the images.
      kernel: (h, w, c / groups, d).
      output: (n, h, w, d).
      strides, dilation: along h and w.
      padding: ((top, bottom), (left, right)).
      groups: the number of groups of channels.
      dtype: of all arrays.
      after: the operations after a forward convolution in the same call: SCALE, SHIFT, RELU and at most one ADD. The
        arrays that they read are further inputs of the call, in this order: ADD's of the dtype, the others of float32.
    """

    direction: str
    image: tuple[int, int, int, int]
    kernel: tuple[int, int, int, int]
    output: tuple[int, int, int, int]
    strides: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]
    dilation: tuple[int, int]
    groups: int
    dtype: str
    after: tuple[str, ...] = ()

    @property
    def multiply_adds(self) -> int:
        n, h, w, d = self.output
        return n * h * w * d * self.kernel[0] * self.kernel[1] * self.kernel[2]

    def name(self, library: str) -> str:
        """Return everything that decides the result to the last bit, in words: equal in every process."""
        return f"{library}: {self.direction} of {self.dtype} {self.image} * {self.kernel} -> {self.output}, strides {self.strides}, padding {self.padding}, dilation {self.dilation}, groups {self.groups}{', then '.join(('', *self.after))}"  # noqa: E501


class Planned(NamedTuple):
    """A convolution that oneDNN computes.

    Attributes:
      name: of its plan.
      scratch: bytes of memory that it needs besides its result.
      implementation: oneDNN's name of the code that it chose.
    """

    name: str
    scratch: int
    implementation: str


class Planner:
    """A builder of plans, which holds those that were built or requested last.

    A plan takes about 0.1 MB. If a program calls a released plan, the planner builds it again, with the same bits.

    Args:
      bridge: receives the plans.

    Attributes:
      limit: the number of plans that are held.
    """

    def __init__(self, bridge: Bridge) -> None:
        self.limit = 1024
        self._bridge = bridge
        self._functions = bridge.library.functions
        self._planned: dict[Shape, Planned | None] = {}
        self._shapes: dict[str, Shape] = {}
        self._held: collections.OrderedDict[str, NativePlan] = collections.OrderedDict()
        self._lock = threading.Lock()
        bridge.plan_again = self._plan_again

    def __len__(self) -> int:
        return len(self._held)

    def plan(self, shape: Shape) -> Planned | None:
        """Return the plan of a convolution; None if oneDNN has no fast code for it."""
        with self._lock:
            if shape not in self._planned:
                self._planned[shape] = self._build(shape)
            planned = self._planned[shape]
            if planned is not None and planned.name in self._held:
                self._held.move_to_end(planned.name)
            return planned

    def _plan_again(self, name: str) -> bool:
        with self._lock:
            shape = self._shapes.get(name)
            return shape is not None and (name in self._held or self._build(shape) is not None)

    def _build(self, shape: Shape) -> Planned | None:
        with contextlib.ExitStack() as stack, self._threads():
            build = _Build(self._bridge, shape, stack)
            try:
                planned = build.planned()
            except _Unimplemented:
                return None
        if planned is not None:
            self._shapes[planned.name] = shape
            self._held[planned.name] = build.plan
            self._bridge.add(build.plan)
            while len(self._held) > self.limit:
                self._bridge.remove(self._held.popitem(last=False)[1])
        return planned

    @contextlib.contextmanager
    def _threads(self) -> Iterator[None]:
        """Set the number of OpenMP threads in the block, by which new primitives split their work."""
        before = self._functions.omp_get_max_threads()
        self._functions.omp_set_num_threads(self._bridge.library.threads)
        try:
            yield
        finally:
            self._functions.omp_set_num_threads(before)


class _Unimplemented(Exception):  # noqa: N818 - it ends the building of one plan
    """OneDNN has no primitive of this kind."""


class _Reorder(NamedTuple):
    """A copy between two layouts of an array."""

    description: Any
    source: Any
    target: Any


class _Build:
    """A plan under construction. The end of the stack frees the objects that only the construction needs."""

    def __init__(self, bridge: Bridge, shape: Shape, stack: contextlib.ExitStack) -> None:
        self._bridge = bridge
        self._dnnl = bridge.library.functions
        self._shape = shape
        self._stack = stack
        self.plan = NativePlan()
        self._scratch = 0

    def planned(self) -> Planned | None:
        """Fill in the plan, and return it in words; None if oneDNN has no fast code for the convolution."""
        shape, plan = self._shape, self.plan
        read = [what for what in shape.after if what != RELU]
        plan.inputs, plan.outputs = 2 + len(read), 2
        plan.aliased = 2 + read.index(ADD) if ADD in read else 0
        images, outputs = (self._strided((0, 3, 1, 2), sizes) for sizes in (shape.image, shape.output))
        kernel, any_kernel = self._kernel()
        description = forward = self._convolution(FORWARD, images, any_kernel, outputs, None)
        if shape.direction != FORWARD:
            description = self._convolution(shape.direction, images, any_kernel, outputs, forward)
        implementation = self._implementation(description)
        if implementation.startswith(("ref", "gemm")):
            return None
        arguments, before, after = self._arguments(description, images, kernel, outputs)
        for reorder in before:
            self._call_reorder(reorder)
        self._call(description, arguments)
        for reorder in after:
            self._call_reorder(reorder)
        scratch = self._scratch + ALIGNMENT
        plan.buffers[plan.inputs + 1] = Buffer(_BYTES_XLA, scratch)
        name = shape.name(str(self._bridge.library))
        plan.name, plan.length = name.encode(), len(name.encode())
        return Planned(name, scratch, implementation)

    def _arguments(
        self, description: Any, images: Any, kernel: Any, outputs: Any
    ) -> tuple[list[tuple[int, Any]], list[_Reorder], list[_Reorder]]:
        """Return the memories of the convolution in their roles, and the reorderings before and after it."""
        shape, plan = self._shape, self.plan
        arrays = {"image": (shape.image, images), "kernel": (shape.kernel, kernel), "output": (shape.output, outputs)}
        arguments: list[tuple[int, Any]] = []
        before: list[_Reorder] = []
        after: list[_Reorder] = []
        # XLA passes the arguments first, then the results: that of the convolution, then the scratch memory.
        for (which, role), i in zip(_ROLES[shape.direction], (0, 1, plan.inputs), strict=True):
            sizes, array = arrays[which]
            plan.buffers[i] = Buffer(DTYPES[shape.dtype][1], _product(sizes))
            memory = self._memory(array, i, -1)
            wanted = self._queried(description, role) if which == "kernel" else array
            if not self._dnnl.dnnl_memory_desc_equal(wanted, array):
                theirs = self._scratch_memory(wanted)
                if role == _DIFF_WEIGHTS:
                    after.append(_Reorder(self._reorder(wanted, array), theirs, memory))
                else:
                    before.append(_Reorder(self._reorder(array, wanted), memory, theirs))
                memory = theirs
            arguments.append((role, memory))
        return arguments + self._operands(), before, after

    # --- oneDNN's objects ---------------------------------------------------------------------------------------------

    def _check(self, status: int) -> None:
        if status:
            raise _Unimplemented(status)

    def _made(self, create: Callable[..., int], destroy: Callable[..., int] | None, *arguments: Any) -> Any:
        """Return a new object of oneDNN, which the end of the stack frees if it has a `destroy`."""
        handle = ctypes.c_void_p()
        self._check(create(ctypes.byref(handle), *arguments))
        if destroy is not None:
            self._stack.callback(destroy, handle)
        return handle

    def _description(self, sizes: Sequence[int], strides: Sequence[int] | None, dtype: str | None = None) -> Any:
        """Return the description of an array, by default of the convolution's dtype."""
        dnnl, number = self._dnnl, DTYPES[dtype or self._shape.dtype][0]
        if strides is None:
            create, last = dnnl.dnnl_memory_desc_create_with_tag, _ANY
        else:
            create, last = dnnl.dnnl_memory_desc_create_with_strides, _dims(strides)
        return self._made(create, dnnl.dnnl_memory_desc_destroy, len(sizes), _dims(sizes), number, last)

    def _strided(self, order: tuple[int, ...], sizes: tuple[int, ...]) -> Any:
        """Return the description of a dense array, with its axes in the order of oneDNN."""
        strides = [_product(sizes[axis + 1 :]) for axis in range(len(sizes))]
        return self._description([sizes[axis] for axis in order], [strides[axis] for axis in order])

    def _by_channel(self) -> Any:
        channels = self._shape.output[3]
        return self._description([1, channels, 1, 1], [channels, 1, channels, channels], "float32")

    def _operands(self) -> list[tuple[int, Any]]:
        """Return the arrays that the operations after a convolution read, in their roles."""
        found, buffer = [], 2
        for position, what in enumerate(self._shape.after, 1):
            role = position * _POST_OPERATION
            if what == RELU:
                slope = self._description([1, 1, 1, 1], [1, 1, 1, 1], "float32")
                found.append((role | _WEIGHTS, self._memory(slope, _NO_BUFFER, 0, ctypes.addressof(_ZERO))))
                continue
            size = _product(self._shape.output) if what == ADD else self._shape.output[3]
            dtype = self._shape.dtype if what == ADD else "float32"
            self.plan.buffers[buffer] = Buffer(DTYPES[dtype][1], size)
            if what != ADD:  # ADD reads the buffer of the result
                found.append((role | _SECOND, self._memory(self._by_channel(), buffer, -1)))
            buffer += 1
        return found

    def _with_following(self) -> Any:
        """Return the attributes of a primitive with operations on each result."""
        dnnl = self._dnnl
        operations = self._made(dnnl.dnnl_post_ops_create, dnnl.dnnl_post_ops_destroy)
        for what in self._shape.after:
            if what == RELU:
                # A leaky ReLU of slope 0 keeps NaN; oneDNN's own ReLU turns NaN into 0. The leaky one turns minus
                # infinity into NaN, XLA's into 0: a network with infinite values has diverged, and NaN shows it.
                self._check(dnnl.dnnl_post_ops_append_prelu(operations, 0))
            elif what == ADD:
                self._check(dnnl.dnnl_post_ops_append_sum(operations, ctypes.c_float(1), 0, _UNDEFINED))
            else:
                self._check(dnnl.dnnl_post_ops_append_binary(operations, _BINARY[what], self._by_channel()))
        attributes = self._attributes()
        self._check(dnnl.dnnl_primitive_attr_set_post_ops(attributes, operations))
        return attributes

    def _attributes(self) -> Any:
        """Return the attributes of every primitive: its scratch memory is an argument."""
        dnnl = self._dnnl
        attributes = self._made(dnnl.dnnl_primitive_attr_create, dnnl.dnnl_primitive_attr_destroy)
        self._check(dnnl.dnnl_primitive_attr_set_scratchpad_mode(attributes, _SCRATCHPAD_OF_USER))
        return attributes

    def _kernel(self) -> tuple[Any, Any]:
        """Return the descriptions of the kernel in JAX's layout, and in the one that oneDNN chooses."""
        height, width, inner, outer = self._shape.kernel
        groups = self._shape.groups
        sizes = [outer // groups, inner, height, width]
        strides = [1, outer, width * inner * outer, inner * outer]
        if groups > 1:
            sizes, strides = [groups, *sizes], [outer // groups, *strides]
        return self._description(sizes, strides), self._description(sizes, None)

    def _convolution(self, direction: str, images: Any, kernel: Any, outputs: Any, forward: Any) -> Any:
        shape, dnnl = self._shape, self._dnnl
        (top, bottom), (left, right) = shape.padding
        window = (
            _dims(shape.strides),
            _dims([step - 1 for step in shape.dilation]),
            _dims([top, left]),
            _dims([bottom, right]),
        )
        engine, destroy = self._bridge.engine, dnnl.dnnl_primitive_desc_destroy
        if direction == FORWARD:
            create = dnnl.dnnl_convolution_forward_primitive_desc_create
            arrays: tuple[Any, ...] = (_TRAINING, _DIRECT, images, kernel, None, outputs)
        elif direction == DATA:
            create = dnnl.dnnl_convolution_backward_data_primitive_desc_create
            arrays = (_DIRECT, images, kernel, outputs)
        else:
            create = dnnl.dnnl_convolution_backward_weights_primitive_desc_create
            arrays = (_DIRECT, images, kernel, None, outputs)
        hint = () if direction == FORWARD else (forward,)
        attributes = self._with_following() if self._shape.after else self._attributes()
        return self._made(create, destroy, engine, *arrays, *window, *hint, attributes)

    def _reorder(self, source: Any, target: Any) -> Any:
        dnnl, engine = self._dnnl, self._bridge.engine
        return self._made(
            dnnl.dnnl_reorder_primitive_desc_create,
            dnnl.dnnl_primitive_desc_destroy,
            source,
            engine,
            target,
            engine,
            self._attributes(),
        )

    def _implementation(self, description: Any) -> str:
        text = ctypes.c_char_p()
        self._check(self._dnnl.dnnl_primitive_desc_query(description, _QUERY_IMPLEMENTATION, 0, ctypes.byref(text)))
        return (text.value or b"").decode()

    def _queried(self, description: Any, role: int) -> Any:
        """Return oneDNN's preferred layout of the array in a role."""
        found = self._dnnl.dnnl_primitive_desc_query_md(description, _QUERY_MD[role], 0)
        if not found:
            raise _Unimplemented(role)
        return ctypes.c_void_p(found)

    # --- the plan -----------------------------------------------------------------------------------------------------

    def _memory(self, description: Any, buffer: int, offset: int, data: int = 0) -> Any:
        # 0: no data yet; they are set before every execution. The memory lives as long as the plan.
        memory = self._made(
            self._dnnl.dnnl_memory_create, None, description, self._bridge.engine, ctypes.c_void_p(data)
        )
        self.plan.memories[self.plan.memory_count] = Memory(memory, buffer, offset)
        self.plan.memory_count += 1
        return memory

    def _scratch_memory(self, description: Any) -> Any:
        memory = self._memory(description, self.plan.inputs + 1, self._scratch)
        size = self._dnnl.dnnl_memory_desc_get_size(description)
        self._scratch += -(-size // ALIGNMENT) * ALIGNMENT
        return memory

    def _call_reorder(self, reorder: _Reorder) -> None:
        self._call(reorder.description, [(_FROM, reorder.source), (_TO, reorder.target)])

    def _call(self, description: Any, arguments: list[tuple[int, Any]]) -> None:
        scratchpad = self._dnnl.dnnl_primitive_desc_query_md(description, _QUERY_SCRATCHPAD, 0)
        if scratchpad and self._dnnl.dnnl_memory_desc_get_size(ctypes.c_void_p(scratchpad)):
            arguments = [*arguments, (_SCRATCHPAD, self._scratch_memory(ctypes.c_void_p(scratchpad)))]
        primitive = self._made(self._dnnl.dnnl_primitive_create, None, description)
        call = NativeCall(primitive, len(arguments))
        for i, (role, memory) in enumerate(arguments):
            call.arguments[i] = Argument(role, memory)
        self.plan.calls[self.plan.call_count] = call
        self.plan.call_count += 1


def _dims(values: Sequence[int]) -> Any:
    """Return a dnnl_dims_t: twelve numbers. oneDNN reads one for each axis."""
    return (ctypes.c_int64 * 12)(*values)


def _product(values: Sequence[int]) -> int:
    result = 1
    for value in values:
        result *= value
    return result
