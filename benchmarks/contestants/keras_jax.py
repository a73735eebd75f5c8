"""Keras 3 on JAX: the same network in Keras layers, with `model.fit`, `evaluate` and `predict`, silent.

Strided 3x3 and 7x7 convolutions use the padding "same", the usual choice in Keras. The sampling grid is then moved by a
pixel; the work is the same.
"""

import os
from typing import Any

os.environ["KERAS_BACKEND"] = "jax"

import keras
from keras import layers

from benchmarks import contestants, problems
from benchmarks.child import peak_memory


def network(spec: dict[str, Any], side: int) -> keras.Model:
    """Build a ResNet from a spec of resfit."""

    def conv(x: Any, width: int, kernel: int, strides: int = 1) -> Any:
        start = keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal")
        layer = layers.Conv2D(width, kernel, strides, "same", use_bias=False, kernel_initializer=start)
        return layer(x)

    def norm(x: Any, start: str = "ones") -> Any:
        return layers.BatchNormalization(momentum=0.9, epsilon=1e-5, gamma_initializer=start)(x)

    def block(x: Any, width: int, strides: int) -> Any:
        if spec["block"] == "basic":
            out, y = width, layers.ReLU()(norm(conv(x, width, 3, strides)))
            y = norm(conv(y, out, 3), "zeros")
        else:
            out, y = 4 * width, layers.ReLU()(norm(conv(x, width, 1)))
            y = layers.ReLU()(norm(conv(y, width, 3, strides)))
            y = norm(conv(y, out, 1), "zeros")
        if strides > 1 or x.shape[-1] != out:
            if spec["shortcut"] == "A":
                x = x[:, ::strides, ::strides, :]
                x = keras.ops.pad(x, ((0, 0), (0, 0), (0, 0), (0, out - x.shape[-1])))
            else:
                x = norm(conv(x, out, 1, strides))
        return layers.ReLU()(layers.Add()([y, x]))

    inputs = keras.Input((side, side, spec["in_channels"]))
    if spec["stem"] == "imagenet":
        x = layers.ReLU()(norm(conv(inputs, spec["widths"][0], 7, 2)))
        x = layers.MaxPooling2D(3, 2, "same")(x)
    else:
        x = layers.ReLU()(norm(conv(inputs, spec["widths"][0], 3)))
    for stage, (depth, width) in enumerate(zip(spec["depths"], spec["widths"], strict=True)):
        for position in range(depth):
            x = block(x, width, 2 if stage and not position else 1)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(spec["num_classes"], dtype="float32")(x))


class Contestant:
    """The contestant Keras."""

    def __init__(self, platform: str, name: str, steps: int | None = None) -> None:
        self._problem = problems.problem(platform, name, steps)
        self._x, self._y = problems.images(self._problem)
        if self._problem.spec.get("dtype") == "bfloat16":
            keras.mixed_precision.set_dtype_policy("mixed_bfloat16")
        self._model = network(self._problem.spec, self._problem.side)
        self._model.compile(
            keras.optimizers.SGD(contestants.LEARNING_RATE, momentum=contestants.MOMENTUM, nesterov=True),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )

    def train(self) -> float:
        history = self._model.fit(self._x, self._y, batch_size=self._problem.batch, verbose=0)
        return float(history.history["loss"][-1])

    def evaluate(self) -> float:
        return float(self._model.evaluate(self._x, self._y, batch_size=self._problem.batch, verbose=0)[0])

    def predict(self) -> list[int]:
        return list(self._model.predict(self._x, batch_size=self._problem.batch, verbose=0).shape)

    def facts(self) -> dict[str, Any]:
        parameters = sum(int(keras.ops.size(weight)) for weight in self._model.trainable_variables)
        return {"parameters": parameters, "peak_memory": peak_memory(), "temporary_memory": None, "remark": ""}
