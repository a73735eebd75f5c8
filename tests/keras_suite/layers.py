"""Layers and models of Keras as small NNX modules, and the methods of a model on a `resfit.Model`.

The layers build their parameters at the first call, as in Keras, and a model makes its `resfit.Model` after it. All
training, evaluation and prediction is that of resfit.
"""

import contextlib
import inspect
import itertools
import types
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import resfit
from resfit.data.choose import in_memory
from resfit.data.sources.iterables import as_batch
from tests.keras_suite import objects
from tests.keras_suite.names import NotTranslated, NotTranslatedAttributeError, refuse

_training: list[bool] = [False]  # of the call that is running
_random = itertools.count()


@contextlib.contextmanager
def _mode(training: bool) -> Iterator[None]:
    _training.append(training)
    try:
        yield
    finally:
        _training.pop()


# --- values ----------------------------------------------------------------------------------------------------------


def initializer(given: Any) -> Any:
    """Return a function shape -> array of an initializer of Keras."""
    if callable(given):
        return given
    named = {"zeros": jnp.zeros, "ones": jnp.ones, "glorot_uniform": _glorot}
    if given not in named:
        raise NotTranslated(f"initializers.{given}")
    return named[given]


def _glorot(shape: Any) -> jax.Array:
    return jax.nn.initializers.glorot_uniform()(jax.random.key(next(_random)), shape)


initializers = {
    "Ones": lambda: jnp.ones,
    "Zeros": lambda: jnp.zeros,
    "Constant": lambda value=0.0: lambda shape: jnp.full(shape, value),
}


class _Assigned:
    """The methods of Keras's variables."""

    def assign(self, value: Any) -> None:
        self[...] = jnp.asarray(value, self[...].dtype)

    def assign_add(self, value: Any) -> None:
        self.assign(self[...] + value)

    def numpy(self) -> np.ndarray:
        return np.asarray(self[...])


class Trained(_Assigned, nnx.Param):
    """A trainable variable."""


class Carried(_Assigned, nnx.Variable):
    """A variable that steps carry, and the optimizer does not change."""


# --- layers ----------------------------------------------------------------------------------------------------------


class Symbol:
    """A value of the functional API: the input of a model, or a layer that was called with symbols."""

    def __init__(self, layer: Any = None, inputs: Any = (), options: Any = None) -> None:
        self.layer, self.inputs, self.options = layer, inputs, options or {}


def input_symbol(shape: Any = None, batch_size: int | None = None, name: str | None = None) -> Symbol:
    """Return an input of a model; shapes are those of the data."""
    del shape, batch_size, name
    return Symbol()


class Layer(nnx.Module, pytree=False):
    """A layer, whose `call` is the computation and whose `build` makes its parameters at the first call."""

    def __init__(self, *, name: Any = None, dtype: Any = None, input_shape: Any = None, **unknown: Any) -> None:
        del name, input_shape
        refuse(type(self).__name__, dtype=dtype, **unknown)

    def build(self, shape: Any) -> None: ...

    def call(self, inputs: Any) -> Any:
        raise NotTranslated(f"{type(self).__name__} without call")

    def add_weight(self, shape: Any = (), initializer: Any = "glorot_uniform", trainable: bool = True, **_: Any) -> Any:
        values = globals()["initializer"](initializer)(shape)
        return Trained(values) if trainable else Carried(values)

    add_variable = add_weight

    def add_loss(self, *_: Any) -> None:
        raise NotTranslated("add_loss")

    def __call__(self, *inputs: Any, training: bool | None = None, **options: Any) -> Any:
        if any(isinstance(leaf, Symbol) for leaf in jax.tree.leaves(inputs)):
            return Symbol(self, inputs, options if training is None else options | {"training": training})
        if not self.__dict__.get("built"):
            self.build(jax.tree.map(jnp.shape, inputs[0]))
            self.built = True
        mode = _training[-1] if training is None else training
        if "training" in inspect.signature(self.call).parameters:
            options["training"] = mode
        with _mode(mode):
            return self.call(*inputs, **options)


class Dense(Layer):
    """A dense layer."""

    def __init__(
        self,
        units: int,
        activation: Any = None,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.units, self.activation, self.use_bias = units, activation, use_bias
        self.kernel_initializer = initializer(kernel_initializer)

    def build(self, shape: Any) -> None:
        self.kernel = Trained(self.kernel_initializer((shape[-1], self.units)))
        self.bias = Trained(jnp.zeros(self.units)) if self.use_bias else None

    def call(self, inputs: Any) -> Any:
        outputs = inputs @ self.kernel[...]
        outputs = outputs if self.bias is None else outputs + self.bias[...]
        return outputs if self.activation is None else getattr(jax.nn, self.activation)(outputs)


class Identity(Layer):
    """A layer that returns its inputs."""

    def call(self, inputs: Any) -> Any:
        return inputs


class Flatten(Layer):
    """A layer that flattens each example."""

    def call(self, inputs: Any) -> Any:
        return inputs.reshape(len(inputs), -1)


# --- models ----------------------------------------------------------------------------------------------------------


class Network(nnx.Module, pytree=False):
    """The module of a `resfit.Model`: a model of Keras, in the mode that resfit passes."""

    def __init__(self, layer: Layer) -> None:
        self.layer = layer

    def __call__(self, x: Any, training: bool) -> Any:
        return self.layer(x, training=training)


class _Record:
    """The `resfit.Model` of a model of Keras, or what is to become of it once its parameters are built."""

    def __init__(self, keras_model: Any) -> None:
        self.keras_model = keras_model
        self.model: Any = None
        self.arguments: dict[str, Any] | None = None
        self.settings: dict[str, Any] = {}
        self.outputs: tuple[int, ...] = ()

    def compile(self) -> None:
        """Compile the `resfit.Model`, if there is one and its arguments are known."""
        if self.model is not None and self.arguments is not None:
            metrics = objects.metrics_argument(self.arguments["metrics"], *self.outputs)
            self.model.compile(**self.arguments | {"metrics": metrics})


_records: dict[int, _Record] = {}


def _record(keras_model: Any) -> _Record:
    return _records.setdefault(id(keras_model), _Record(keras_model))


def keras_model_of(model: Any) -> Any:
    """Return the model of Keras of a `resfit.Model`; any other object as it is."""
    return next((record.keras_model for record in _records.values() if record.model is model), model)


_OVERRIDES = ("train_step", "test_step", "predict_step", "compute_loss", "compute_metrics", "call_loss")


def _kind(keras_model: Any) -> type:
    """Return the subclass of `resfit.Model` with the methods that a test overrides."""
    own = {
        name: vars(base)[name]
        for base in type(keras_model).__mro__
        for name in _OVERRIDES
        if name in vars(base) and base.__module__ != __name__
    }
    return type("Model", (resfit.Model,), own) if own else resfit.Model


def _setting(name: str) -> property:
    """Return an attribute of a `resfit.Model` that is kept until there is one."""

    def read(self: Any) -> Any:
        record = _record(self)
        return record.settings.get(name, False) if record.model is None else getattr(record.model, name)

    def write(self: Any, value: Any) -> None:
        record = _record(self)
        record.settings[name] = value
        if record.model is not None:
            setattr(record.model, name, value)

    return property(read, write)


class Trainer:
    """The methods of a model of Keras, on a `resfit.Model`."""

    def __init__(self) -> None: ...

    stop_training, stop_evaluating = _setting("stop_training"), _setting("stop_evaluating")
    stop_predicting, run_eagerly = _setting("stop_predicting"), _setting("run_eagerly")
    jit_compile, trainable = _setting("jit_compile"), _setting("trainable")

    def compile(
        self,
        optimizer: Any = "rmsprop",
        loss: Any = None,
        loss_weights: Any = None,
        metrics: Any = None,
        weighted_metrics: Any = None,
        **options: Any,
    ) -> None:
        record = _record(self)
        options.pop("auto_scale_loss", None)
        record.arguments = {
            **objects.optimizer_arguments(optimizer),
            "loss": objects.loss_argument(loss),
            "metrics": metrics,
            **({} if loss_weights is None else {"loss_weights": loss_weights}),
            **({} if weighted_metrics is None else {"weighted_metrics": weighted_metrics}),
            "preprocess": None,
            **options,
        }
        record.compile()

    def _built(self, x: Any) -> Any:
        """Make the `resfit.Model` from the first batch of the data; return the data with this batch."""
        record = _record(self)
        if record.model is not None:
            return x
        first, x = _first(x)
        if first is not None:
            before = nnx.state(self)
            record.outputs = np.shape(jax.tree.leaves(self(first))[0])[-1:]
            nnx.update(self, before)  # building is no step of the model
        record.model = _kind(self)(Network(self))
        for name, value in record.settings.items():
            setattr(record.model, name, value)
        record.compile()
        return x

    def _model(self) -> Any:
        model = _record(self).model
        if model is None:
            raise NotTranslated("a model without data")
        return model

    def fit(self, x: Any = None, *arguments: Any, **options: Any) -> Any:
        x = self._built(x)
        return self._model().fit(x, *arguments, **options)

    def evaluate(self, x: Any = None, *arguments: Any, **options: Any) -> Any:
        x = self._built(x)
        return self._model().evaluate(x, *arguments, **options)

    def predict(self, x: Any, *arguments: Any, **options: Any) -> Any:
        x = self._built(x)
        return self._model().predict(x, *arguments, **options)

    def train_on_batch(self, x: Any, *arguments: Any, **options: Any) -> Any:
        x = self._built(x)
        return self._model().train_on_batch(x, *arguments, **options)

    def test_on_batch(self, x: Any, *arguments: Any, **options: Any) -> Any:
        x = self._built(x)
        return self._model().test_on_batch(x, *arguments, **options)

    def predict_on_batch(self, x: Any) -> Any:
        x = self._built(x)
        return self._model().predict_on_batch(x)

    def get_weights(self) -> Any:
        model = _record(self).model
        return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(self))] if model is None else model.get_weights()

    def set_weights(self, weights: Any) -> None:
        self._model().set_weights(weights)

    def count_params(self) -> int:
        return self._model().count_params()

    @property
    def metrics_names(self) -> Any:
        return self._model().metrics_names

    @property
    def optimizer(self) -> Any:
        return objects.Optimizer(self._model())

    @property
    def history(self) -> Any:
        return self._model().history

    def publish(self) -> None:
        """Write the current values into the layers."""
        if (model := _record(self).model) is not None:
            _ = model.module

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name in ("built", "call"):
            raise AttributeError(name)
        model = _record(self).model
        if model is None:
            raise NotTranslatedAttributeError(f"Model.{name} before there are data")
        return getattr(model, name)


def _first(x: Any) -> tuple[Any, Any]:
    """Return the inputs of the first batch, as float32 for floats, and the data as they were."""
    with contextlib.suppress(TypeError, IndexError, StopIteration, KeyError):
        if in_memory(x):
            return jax.tree.map(lambda leaf: _values(np.asarray(leaf)[:2]), x), x
        if isinstance(x, types.GeneratorType):
            batch = next(x)
            return _inputs(batch, x), _chained(batch, x)
        return _inputs(x[0] if hasattr(x, "__getitem__") and not hasattr(x, "__next__") else next(iter(x)), x), x
    return None, x


def _chained(first: Any, rest: Any) -> Iterator[Any]:
    yield first
    yield from rest


def _inputs(batch: Any, data: Any) -> Any:
    return jax.tree.map(lambda leaf: _values(np.asarray(leaf)), as_batch(batch, data).x)


def _values(array: np.ndarray) -> jax.Array:
    return jnp.asarray(array, jnp.float32 if array.dtype.kind == "f" else None)


class Model(Trainer, Layer):
    """A model: a subclass with `call`, or a graph of symbols."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        return super().__new__(cls)

    def __init__(self, inputs: Any = None, outputs: Any = None, **options: Any) -> None:
        Layer.__init__(self, **options)
        if inputs is not None:
            self.graph = _Graph(inputs, outputs)
            for i, layer in enumerate(self.graph.layers):
                setattr(self, f"layer_{i}", layer)

    @property
    def layers(self) -> list[Any]:
        self.publish()
        return [entry for entry in vars(self).values() if isinstance(entry, Layer)]

    def call(self, inputs: Any) -> Any:
        if "graph" not in vars(self):
            raise NotTranslated(f"{type(self).__name__} without call")
        return self.graph({number: vars(self)[f"layer_{number}"] for number in range(len(self.graph.layers))}, inputs)


class _Graph:
    """The symbols between inputs and outputs, without the layers, which the module holds by number."""

    def __init__(self, inputs: Any, outputs: Any) -> None:
        self.layers: list[Layer] = []
        self.inputs = [id(leaf) for leaf in jax.tree.leaves(inputs)]
        self._numbers: dict[int, int] = {}
        self._list(outputs)
        self.outputs = outputs

    def _list(self, symbols: Any) -> None:
        for symbol in jax.tree.leaves(symbols):
            if isinstance(symbol, Symbol) and symbol.layer is not None:
                self._list(symbol.inputs)
                if id(symbol.layer) not in self._numbers:
                    self._numbers[id(symbol.layer)] = len(self.layers)
                    self.layers.append(symbol.layer)

    def __call__(self, layers: dict[int, Any], inputs: Any) -> Any:
        known = dict(zip(self.inputs, jax.tree.leaves(inputs), strict=True))

        def value(symbol: Any) -> Any:
            if isinstance(symbol, Symbol) and id(symbol) not in known:
                arguments = jax.tree.map(value, symbol.inputs)
                known[id(symbol)] = layers[self._numbers[id(symbol.layer)]](*arguments, **symbol.options)
            return known[id(symbol)] if isinstance(symbol, Symbol) else symbol

        return jax.tree.map(value, self.outputs)


class Sequential(Trainer, Layer):
    """Layers one after another."""

    def __init__(self, layers: Any = (), **options: Any) -> None:
        Layer.__init__(self, **options)
        for layer in layers:
            self.add(layer)

    def add(self, layer: Any) -> None:
        if isinstance(layer, Layer):
            setattr(self, f"layer_{len(self._layers())}", layer)

    def _layers(self) -> list[Any]:
        return [entry for name, entry in vars(self).items() if name.startswith("layer_")]

    @property
    def layers(self) -> list[Any]:
        self.publish()
        return self._layers()

    def call(self, inputs: Any) -> Any:
        for layer in self._layers():
            inputs = layer(inputs)
        return inputs


layers = {
    "Dense": Dense,
    "Flatten": Flatten,
    "Identity": Identity,
    "Input": input_symbol,
    "InputLayer": input_symbol,
    "Layer": Layer,
}
models = {"Functional": Model, "Model": Model, "Sequential": Sequential}
