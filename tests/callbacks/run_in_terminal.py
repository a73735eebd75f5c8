"""Train a small network in the terminal that this process is started in, once for each width in its arguments."""

import fcntl
import struct
import sys
import termios
import time
from typing import Any

import numpy as np
from flax import nnx

import resfit
from resfit.callbacks import Callback

ROWS, COUNT = 40, 11  # COUNT is no multiple of the batch size: the last batch compiles another step


class Slow(Callback):
    """A callback that takes its time, so that the line is drawn at every step and while a program compiles."""

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        time.sleep(0.12)

    def on_compile_begin(self, what: str) -> None:
        time.sleep(0.12)  # a compilation of this small network can be faster than the display is drawn

    on_compile_end = on_compile_begin  # before or after that of the progress bar: one of both is inside


class Evaluates(Callback):
    """A callback that evaluates and prints during an epoch."""

    def __init__(self, x: Any, y: Any) -> None:
        self.data = x, y

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        print("printed")
        self.model.evaluate(*self.data, batch_size=4)


class Net(nnx.Module):
    def __init__(self) -> None:
        self.linear = nnx.Linear(12, 3, rngs=nnx.Rngs(0))

    def __call__(self, x: Any) -> Any:
        return self.linear(x.reshape(x.shape[0], -1))


def main() -> None:
    x = np.random.default_rng(0).normal(size=(COUNT, 2, 2, 3)).astype(np.float32)
    y = np.arange(COUNT) % 3
    model = resfit.Model(Net())
    model.compile("sgd", learning_rate="cosine", metrics=["accuracy"])
    for width in map(int, sys.argv[1:]):
        fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, width, 0, 0))
        print(f"width {width}", flush=True)
        model.fit(x, y, batch_size=4, epochs=12, initial_epoch=9, validation_data=(x, y), callbacks=[Slow()])
        model.evaluate(x, y, batch_size=4)
    print("nested", flush=True)
    model.fit(x, y, batch_size=4, epochs=2, callbacks=[Slow(), Evaluates(x, y)])


if __name__ == "__main__":
    main()
