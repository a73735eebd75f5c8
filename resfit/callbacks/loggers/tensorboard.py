"""A callback that writes event files for TensorBoard, without TensorFlow."""

import math
import os
import time
from typing import Any

import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat
from flax import nnx

from resfit import plots
from resfit._utils.checks import int_from
from resfit._utils.optional_import import load_package
from resfit._utils.paths import folder_path
from resfit.callbacks import first_process
from resfit.callbacks.loggers.metric_logger import MetricLogger, Moment, scalars
from resfit.callbacks.logs import Logs, read
from resfit.errors import CallbackError


class TensorBoard(MetricLogger):
    """A callback that writes logs for `tensorboard --logdir logs`. Needs `pip install "resfit[tensorboard]"`.

    Names are Keras's:

    - Epochs: `epoch_loss` and so on in the runs `train` and `validation`, which TensorBoard draws in one panel. The run
      `train` also has `epoch_learning_rate`, `epoch_images_per_second` and `epoch_data_wait`, the share of the time in
      which the device waited for data.
    - Batches: `batch_loss` and so on in the run `batches`, over training steps. A batch is written once the device has
      finished it, a few steps later.
    - Outside `fit`: `evaluate(callbacks=[...])` writes `evaluation_loss` and so on in the run `evaluation`.

    A resumed run continues at its checkpoint, and TensorBoard drops what came later. With several processes, the first
    one writes.

    Args:
      log_dir: the folder of the runs' folders.
      histogram_freq: the number of epochs between histograms; 0 for none. Each parameter and statistic gets a histogram
        and its norm, as `stem/conv/kernel/histogram` and `stem/conv/kernel/norm`.
      write_images: with histogram_freq, also write kernels of 1 or 3 input channels as images.
      write_steps_per_second: also write `epoch_steps_per_second`.
      update_freq: "epoch", or "batch" or a number of steps to write batches too.
      confusion_matrix: (x, y) with class numbers as y. The model predicts x after every epoch, and the confusion matrix
        is written as an image.

    Each argument but confusion_matrix is also an attribute with its name, as in Keras; log_dir as an absolute path.

    Raises:
      CallbackError: for an unusable argument.
      MissingPackageError: if tensorboardX is not installed.

    Example:
      >>> callback = TensorBoard("runs/a", histogram_freq=5, update_freq=100)
    """

    def __init__(
        self,
        log_dir: str | os.PathLike[str] = "logs",
        histogram_freq: int = 0,
        *,
        write_images: bool = False,
        write_steps_per_second: bool = False,
        update_freq: str | int = "epoch",
        confusion_matrix: tuple[Any, Any] | None = None,
    ) -> None:
        histogram_freq = int_from(0, "histogram_freq", histogram_freq, CallbackError, "a number of epochs >= 0")
        if write_images and not histogram_freq:
            raise CallbackError(
                "TensorBoard received write_images=True without histogram_freq. Expected both: images are written with "
                "the histograms. Pass histogram_freq=1."
            )
        if confusion_matrix is not None and (not isinstance(confusion_matrix, tuple) or len(confusion_matrix) != 2):
            raise CallbackError(f"Expected confusion_matrix to be (x, y), got a {type(confusion_matrix).__name__}.")
        super().__init__(1 if update_freq == "batch" else update_freq)
        _package()  # raises if it is not installed
        self.log_dir = folder_path(log_dir)
        self.histogram_freq = histogram_freq
        self.write_images = write_images
        self.write_steps_per_second = write_steps_per_second
        self.update_freq = update_freq
        self._confusion_matrix = confusion_matrix
        self._writers: dict[str, Any] = {}
        self._resumed: dict[str, int] = {}
        self._next_epoch = 0
        self._newest: tuple[Moment, dict[str, float]] | None = None  # the last batch written

    # --- when ---------------------------------------------------------------------------------------------------------

    def on_train_begin(self, logs: Logs | None = None) -> None:
        super().on_train_begin(logs)
        self._resumed = {}
        self._next_epoch = 0

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        super().on_epoch_end(epoch, logs)
        self._next_epoch = epoch + 1
        if self._confusion_matrix is not None:
            x, y = self._confusion_matrix
            predictions = self.model.predict(x, verbose=0)  # all processes take part
            if first_process.is_first():
                self._image("validation", "confusion_matrix", _pixels(plots.confusion_matrix(y, predictions)), epoch)
        if first_process.is_first():
            if self.histogram_freq and (epoch + 1) % self.histogram_freq == 0:
                self._write_variables(epoch)
            for writer in self._writers.values():
                writer.flush()

    def on_test_end(self, logs: Logs | None = None) -> None:
        super().on_test_end(logs)
        if not self._training and first_process.is_first():
            for name, value in scalars(dict(logs or {})).items():
                self._writer("evaluation").add_scalar(f"evaluation_{name}", value, self._step)
            self.close()

    # --- what ---------------------------------------------------------------------------------------------------------

    def write(self, moment: Moment, values: dict[str, Any]) -> None:
        if moment.batch is not None:
            self._write_batch(moment, scalars(values))
            return
        figures = self.figures
        if self.write_steps_per_second:
            figures["steps_per_second"] = self.steps_per_second
        for name, value in scalars(values | figures).items():
            run = "validation" if name.startswith("val_") else "train"
            self._writer(run).add_scalar(f"epoch_{name.removeprefix('val_')}", value, moment.epoch)

    def _write_batch(self, moment: Moment, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer("batches").add_scalar(f"batch_{name}", value, moment.step)
        self._newest = moment, values

    def _write_variables(self, epoch: int) -> None:
        state = nnx.to_flat_state(nnx.state(self.model.module, (nnx.Param, nnx.BatchStat)))
        names = ["/".join(map(str, path)) for path, _ in state]
        writer = self._writer("train")
        for name, array in zip(names, read([leaf.get_raw_value() for _, leaf in state]), strict=True):
            if not jnp.issubdtype(array.dtype, jnp.floating):
                continue
            values = np.asarray(array, np.float32)
            # TensorBoard shows nothing under a name that has both a histogram and an image.
            writer.add_scalar(f"{name}/norm", float(np.linalg.norm(values)), epoch)
            finite = values[np.isfinite(values)]  # a histogram cannot show other values, but the norm does
            if finite.size:
                writer.add_histogram(f"{name}/histogram", finite, epoch)
            if self.write_images and values.ndim == 4 and values.shape[2] in (1, 3):
                self._image("train", f"{name}/image", _filters(values), epoch)

    def _image(self, run: str, name: str, pixels: np.ndarray, epoch: int) -> None:
        self._writer(run).add_image(name, pixels, epoch, dataformats="HWC")

    def _writer(self, run: str) -> Any:
        if run not in self._writers:
            # tensorboardX names a file by the second, and would overwrite a file of the same second.
            self._writers[run] = _package().SummaryWriter(
                str(self.log_dir / run),
                purge_step=self._resumed.pop(run, None),
                filename_suffix=f".{time.time_ns()}",
            )
        return self._writers[run]

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()
        self._writers = {}

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        newest = self._newest if self._newest is not None and self._newest[0].step == self._step else None
        newest_ = None if newest is None else [list(newest[0]), newest[1]]
        return {**state, "next_epoch": self._next_epoch, "newest": newest_}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.close()
        self._next_epoch = state["next_epoch"]
        # The first step of each run that TensorBoard drops from the existing files.
        self._resumed = {"train": self._next_epoch, "validation": self._next_epoch, "batches": self._step}
        # The validation after this step may be in the file and comes again, so the whole step is written again.
        newest = state.get("newest")
        if newest is None and "newest" not in state:  # a checkpoint of an earlier version
            self._resumed["batches"] += 1
        elif newest is not None and first_process.is_first():
            self._write_batch(Moment(*newest[0]), newest[1])


def _package() -> Any:
    return load_package("tensorboardX", "TensorBoard", 'pip install "resfit[tensorboard]"')


def _pixels(figure: Any) -> np.ndarray:
    """Return the pixels of a figure, (height, width, 3) uint8."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def _filters(kernel: np.ndarray, zoom: int = 8) -> np.ndarray:
    """Return one uint8 image of all filters of a kernel (height, width, channels, filters)."""
    low, high = np.nanmin(kernel), np.nanmax(kernel)
    scaled = np.nan_to_num((kernel - low) / max(high - low, np.finfo(np.float32).tiny))
    columns = math.ceil(math.sqrt(kernel.shape[-1]))
    rows = math.ceil(kernel.shape[-1] / columns)
    # One black pixel separates filters, and black filters fill the last row.
    padded = np.pad(scaled, ((0, 1), (0, 1), (0, 0), (0, rows * columns - kernel.shape[-1])))
    tiled = rearrange(padded, "h w c (rows columns) -> (rows h) (columns w) c", rows=rows)
    return repeat((255 * tiled).astype(np.uint8), "h w c -> (h a) (w b) c", a=zoom, b=zoom)
