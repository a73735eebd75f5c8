"""What oneDNN does for one convolution of known shapes: its primitives, built once, with the reorderings they need."""

import collections
import contextlib
import ctypes
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from resfit.backends.onednn.bridge import ALIGNMENT, Argument, Bridge, Buffer, Call, Memory, Plan

# Numbers of dnnl_types.h, the same in all versions of its third interface.
_TRAINING, _DIRECT, _ANY, _UNDEFINED = 64, 1, 1, 0
_SCRATCHPAD_OF_USER = 1
_QUERY_IMPLEMENTATION, _QUERY_SCRATCHPAD = 8, 136
_QUERY_MD = {"src": 129, "diff_src": 130, "weights": 131, "diff_weights": 132, "dst": 133, "diff_dst": 134}
_SRC, _DST, _WEIGHTS = 1, 17, 33
_DIFF_SRC, _DIFF_DST, _DIFF_WEIGHTS = 129, 145, 161
_SCRATCHPAD = 80
_FROM, _TO = 1, 17
_POST_OPERATION, _SECOND = 32768, 2  # the role of what the i-th operation after a primitive reads: (i + 1) * the first
DTYPES = {"float32": (3, 11, 4), "bfloat16": (2, 16, 2)}  # oneDNN's number, XLA's, bytes
_BYTES_XLA = 6  # XLA's number for uint8
_NO_BUFFER = -1  # of a memory that keeps the data it was made with

FORWARD, DATA, WEIGHTS = "forward", "data gradient", "weight gradient"

# What oneDNN does with each result of a forward convolution before it is written. SCALE and SHIFT read a value for each
# channel. ADD adds what lies in the result's place: an array of its own cost as much as XLA's addition.
SCALE, SHIFT, ADD, RELU = "scale", "shift", "add", "relu"
_BINARY = {SCALE: 0x1FFF1, SHIFT: 0x1FFF0}  # and the numbers of their algorithms
_ZERO = ctypes.c_float(0)


class Shape(NamedTuple):
    """A convolution of images, of known sizes.

    Attributes:
      direction: FORWARD: images and kernel -> output; DATA: output's gradient and kernel -> images' gradient; WEIGHTS:
        images and output's gradient -> kernel's gradient.
      image: (n, h, w, c) of the images.
      kernel: (h, w, c / groups, d).
      output: (n, h, w, d).
      strides, dilation: along h and w.
      padding: ((top, bottom), (left, right)).
      groups: how many parts the channels are in.
      dtype: of all arrays.
      after: what follows a forward convolution in the same call, of SCALE, SHIFT, RELU and at most one ADD; float32
        only. What is scaled by, shifted by or added are further inputs of the call, in this order.
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
        """All that decides what is computed, to the last bit, in words: the same in every process."""
        return f"{library}: {self.direction} of {self.dtype} {self.image} * {self.kernel} -> {self.output}, strides {self.strides}, padding {self.padding}, dilation {self.dilation}, groups {self.groups}{', then '.join(('', *self.after))}"  # noqa: E501


class Planned(NamedTuple):
    """A convolution that oneDNN takes over.

    Attributes:
      name: of its plan.
      scratch: bytes of memory that it needs beside its result.
      implementation: what oneDNN calls the code that it chose.
    """

    name: str
    scratch: int
    implementation: str


class Planner:
    """Builds plans, and holds those that were built or asked for last.

    A plan takes about 0.1 MB. A program that calls one that was released gets it built again, with the same bits.

    Args:
      bridge: takes the plans.

    Attributes:
      limit: how many plans are held.
    """

    def __init__(self, bridge: Bridge) -> None:
        self.limit = 1024
        self._bridge = bridge
        self._functions = bridge.library.functions
        self._planned: dict[Shape, Planned | None] = {}
        self._shapes: dict[str, Shape] = {}
        self._held: collections.OrderedDict[str, Plan] = collections.OrderedDict()
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
        """Primitives are cut for the number of threads that OpenMP gives the thread that builds them."""
        before = self._functions.omp_get_max_threads()
        self._functions.omp_set_num_threads(self._bridge.library.threads)
        try:
            yield
        finally:
            self._functions.omp_set_num_threads(before)


class _Unimplemented(Exception):  # noqa: N818 - it ends the building of one plan
    """OneDNN has no primitive of this kind."""


class _Build:
    """One plan being built; what only the building needs is freed when the stack ends."""

    def __init__(self, bridge: Bridge, shape: Shape, stack: contextlib.ExitStack) -> None:
        self._bridge = bridge
        self._dnnl = bridge.library.functions
        self._shape = shape
        self._stack = stack
        self.plan = Plan()
        self._scratch = 0

    def planned(self) -> Planned | None:
        shape, plan = self._shape, self.plan
        read = [what for what in shape.after if what != RELU]
        plan.inputs, plan.outputs = 2 + len(read), 2
        plan.aliased = 2 + read.index(ADD) if ADD in read else 0
        images = self._strided((0, 3, 1, 2), shape.image)
        outputs = self._strided((0, 3, 1, 2), shape.output)
        kernel, any_kernel = self._kernel()
        forward = self._convolution(FORWARD, images, any_kernel, outputs, None)
        description = forward
        if shape.direction != FORWARD:
            description = self._convolution(shape.direction, images, any_kernel, outputs, forward)
        implementation = self._implementation(description)
        if implementation.startswith(("ref", "gemm")):
            return None

        # Arguments first, then results: the convolution's own, then the scratch memory, which XLA gives with them.
        of = {"image": shape.image, "kernel": shape.kernel, "output": shape.output}
        roles = {
            FORWARD: (("image", _SRC), ("kernel", _WEIGHTS), ("output", _DST)),
            DATA: (("output", _DIFF_DST), ("kernel", _WEIGHTS), ("image", _DIFF_SRC)),
            WEIGHTS: (("image", _SRC), ("output", _DIFF_DST), ("kernel", _DIFF_WEIGHTS)),
        }[shape.direction]
        descriptions = {"image": images, "kernel": kernel, "output": outputs}
        arguments: list[tuple[int, Any]] = []
        before: list[tuple[Any, Any, Any]] = []
        after: list[tuple[Any, Any, Any]] = []
        for (which, role), i in zip(roles, (0, 1, plan.inputs), strict=True):
            plan.buffers[i] = Buffer(DTYPES[shape.dtype][1], _product(of[which]))
            memory = self._memory(descriptions[which], i, -1)
            if which == "kernel":
                wanted = self._queried(description, "diff_weights" if role == _DIFF_WEIGHTS else "weights")
                if not self._dnnl.dnnl_memory_desc_equal(wanted, kernel):
                    theirs = self._scratch_memory(wanted)
                    if role == _DIFF_WEIGHTS:
                        after.append((self._reorder(wanted, kernel), theirs, memory))
                    else:
                        before.append((self._reorder(kernel, wanted), memory, theirs))
                    memory = theirs
            arguments.append((role, memory))
        arguments += self._operands()
        for reorder, source, target in before:
            self._call(reorder, [(_FROM, source), (_TO, target)])
        self._call(description, arguments)
        for reorder, source, target in after:
            self._call(reorder, [(_FROM, source), (_TO, target)])
        scratch = self._scratch + ALIGNMENT
        plan.buffers[plan.inputs + 1] = Buffer(_BYTES_XLA, scratch)
        name = shape.name(str(self._bridge.library))
        plan.name, plan.length = name.encode(), len(name.encode())
        return Planned(name, scratch, implementation)

    # --- oneDNN's objects ---------------------------------------------------------------------------------------------

    def _check(self, status: int) -> None:
        if status:
            raise _Unimplemented(status)

    def _made(self, create: Callable[..., int], destroy: Callable[..., int] | None, *arguments: Any) -> Any:
        """An object of oneDNN's, freed when the plan is built if it has a `destroy`."""
        handle = ctypes.c_void_p()
        self._check(create(ctypes.byref(handle), *arguments))
        if destroy is not None:
            self._stack.callback(destroy, handle)
        return handle

    def _description(self, sizes: Sequence[int], strides: Sequence[int] | None) -> Any:
        dnnl, dtype = self._dnnl, DTYPES[self._shape.dtype][0]
        if strides is None:
            create, last = dnnl.dnnl_memory_desc_create_with_tag, _ANY
        else:
            create, last = dnnl.dnnl_memory_desc_create_with_strides, _dims(strides)
        return self._made(create, dnnl.dnnl_memory_desc_destroy, len(sizes), _dims(sizes), dtype, last)

    def _strided(self, order: tuple[int, ...], sizes: tuple[int, ...]) -> Any:
        """The description of a dense array whose axes oneDNN names in another order."""
        strides = [_product(sizes[axis + 1 :]) for axis in range(len(sizes))]
        return self._description([sizes[axis] for axis in order], [strides[axis] for axis in order])

    def _by_channel(self) -> Any:
        channels = self._shape.output[3]
        return self._description([1, channels, 1, 1], [channels, 1, channels, channels])

    def _operands(self) -> list[tuple[int, Any]]:
        """What the operations after a convolution read, each in its role."""
        found, buffer = [], 2
        for position, what in enumerate(self._shape.after, 1):
            role = position * _POST_OPERATION
            if what == RELU:
                slope = self._description([1, 1, 1, 1], [1, 1, 1, 1])
                found.append((role | _WEIGHTS, self._memory(slope, _NO_BUFFER, 0, ctypes.addressof(_ZERO))))
                continue
            size = _product(self._shape.output) if what == ADD else self._shape.output[3]
            self.plan.buffers[buffer] = Buffer(DTYPES[self._shape.dtype][1], size)
            if what != ADD:  # which reads the result's place
                found.append((role | _SECOND, self._memory(self._by_channel(), buffer, -1)))
            buffer += 1
        return found

    def _with_following(self) -> Any:
        """The attributes of a primitive that does more with each result before it writes it."""
        dnnl = self._dnnl
        operations = self._made(dnnl.dnnl_post_ops_create, dnnl.dnnl_post_ops_destroy)
        for what in self._shape.after:
            if what == RELU:
                # As a leaky ReLU of slope 0, which leaves NaN as it is; oneDNN's own ReLU makes 0 of it. This one makes
                # NaN of minus infinity, which XLA's makes 0: louder, and a network that has come there is lost.
                self._check(dnnl.dnnl_post_ops_append_prelu(operations, 0))
            elif what == ADD:
                self._check(dnnl.dnnl_post_ops_append_sum(operations, ctypes.c_float(1), 0, _UNDEFINED))
            else:
                self._check(dnnl.dnnl_post_ops_append_binary(operations, _BINARY[what], self._by_channel()))
        attributes = self._attributes()
        self._check(dnnl.dnnl_primitive_attr_set_post_ops(attributes, operations))
        return attributes

    def _attributes(self) -> Any:
        """Those of every primitive: its scratch memory is handed to it."""
        dnnl = self._dnnl
        attributes = self._made(dnnl.dnnl_primitive_attr_create, dnnl.dnnl_primitive_attr_destroy)
        self._check(dnnl.dnnl_primitive_attr_set_scratchpad_mode(attributes, _SCRATCHPAD_OF_USER))
        return attributes

    def _kernel(self) -> tuple[Any, Any]:
        """The kernel as JAX has it, and as oneDNN would like it."""
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

    def _queried(self, description: Any, which: str) -> Any:
        found = self._dnnl.dnnl_primitive_desc_query_md(description, _QUERY_MD[which], 0)
        if not found:
            raise _Unimplemented(which)
        return ctypes.c_void_p(found)

    # --- the plan -----------------------------------------------------------------------------------------------------

    def _memory(self, description: Any, buffer: int, offset: int, data: int = 0) -> Any:
        # 0: without data, which are set before every execution. Kept as long as the plan.
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

    def _call(self, description: Any, arguments: list[tuple[int, Any]]) -> None:
        scratchpad = self._dnnl.dnnl_primitive_desc_query_md(description, _QUERY_SCRATCHPAD, 0)
        if scratchpad and self._dnnl.dnnl_memory_desc_get_size(ctypes.c_void_p(scratchpad)):
            arguments = [*arguments, (_SCRATCHPAD, self._scratch_memory(ctypes.c_void_p(scratchpad)))]
        primitive = self._made(self._dnnl.dnnl_primitive_create, None, description)
        call = Call(primitive, len(arguments))
        for i, (role, memory) in enumerate(arguments):
            call.arguments[i] = Argument(role, memory)
        self.plan.calls[self.plan.call_count] = call
        self.plan.call_count += 1


def _dims(values: Sequence[int]) -> Any:
    """As dnnl_dims_t: twelve numbers, of which as many are read as there are axes."""
    return (ctypes.c_int64 * 12)(*values)


def _product(values: Sequence[int]) -> int:
    result = 1
    for value in values:
        result *= value
    return result
