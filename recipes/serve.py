"""Serve a model: image files in by HTTP, class names and probabilities out.

    python recipes/serve.py net.npz                       # a file of Model.export
    python recipes/serve.py net.safetensors --size 224    # a file of Model.save
    python recipes/serve.py --onnx net.onnx               # the same with onnxruntime, without resfit and jax
    python recipes/serve.py net.npz --load-test 2000      # measures the server on this machine, then stops it

    curl --data-binary @photo.jpg "http://127.0.0.1:8000/predict?top=3"
    {"predictions": [{"class": "cat", "probability": 0.93}, ...]}

Install with `pip install "resfit[serve]"`, or for --onnx with `pip install starlette uvicorn pillow onnxruntime`.

A photograph is resized and cropped by the transforms of the model; without any, its shorter side is resized to the side
of the input, or to --resize, and the center is cropped. Requests that arrive together are predicted together: a batch
begins with the first waiting image and takes at most --max-batch images or --max-wait milliseconds. Batches are filled
up to a power of two, so that few programs are compiled, all of them before the first request.

A body of more than --max-bytes and an image of more than --max-pixels get the answer 413, before they are read or
decoded; other formats than JPEG, PNG and WebP 415, damaged files 400, slow bodies 408, and connections beyond
--max-connections 503. GET /health answers {"status": "ok"}. SIGTERM and Ctrl-C finish the accepted requests and
stop. The server listens on this machine only, and has neither users nor encryption: run it behind a proxy.
"""

import argparse
import asyncio
import contextlib
import http.client
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.routing import Route

FORMATS = ("JPEG", "PNG", "WEBP")
BODY_SECONDS = 30  # for the body of a request
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr")  # 8 bits per channel; others have an unknown scale


class Served(NamedTuple):
    """A model that can be served.

    Attributes:
        predict: maps images (batch, height, width, channels) uint8 to outputs (batch, classes).
        shape: (height, width, channels) of an image.
        outputs: "logits" or "probabilities", the outputs of `predict`.
        multi_label: True if every output is an independent label.
        names: the names of the classes, or None.
        resize: pixels of the shorter side before the crop.
        interpolation: "bilinear" or "bicubic".
    """

    predict: Callable[[np.ndarray], np.ndarray]
    shape: tuple[int, int, int]
    outputs: str
    multi_label: bool
    names: list[str] | None
    resize: int
    interpolation: str

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Return the probabilities (batch, classes) of a batch; a single output gets two."""
        outputs = np.asarray(self.predict(images), np.float32).reshape(len(images), -1)
        if self.outputs == "logits":
            if self.multi_label or outputs.shape[1] == 1:
                outputs = 1 / (1 + np.exp(-outputs))
            else:
                outputs = np.exp(outputs - outputs.max(axis=1, keepdims=True))
                outputs /= outputs.sum(axis=1, keepdims=True)
        return np.concatenate([1 - outputs, outputs], axis=1) if outputs.shape[1] == 1 else outputs


# --- models -----------------------------------------------------------------------------------------------------------


def served(
    predict: Callable[[np.ndarray], np.ndarray],
    shape: list[Any],
    dtype: str,
    metadata: dict[str, Any],
    resize: int | None,
) -> Served:
    """Return a model from its description, or exit with the reason why it cannot be served."""
    outputs = metadata.get("outputs", "logits")
    if dtype != "uint8" or len(shape) != 4 or shape[3] not in (1, 3) or outputs not in ("logits", "probabilities"):
        sys.exit(
            f"The model maps inputs of shape {shape} and dtype {dtype} to {outputs}. Expected images (batch, height, "
            "width, 1 or 3) uint8, and logits or probabilities. Export it with input_dtype='uint8' and "
            "outputs='probabilities'."
        )
    height, width, channels = (int(size) for size in shape[1:])
    transforms = metadata.get("transforms") or {}
    side = resize or transforms.get("resize") or max(height, width)
    if side < max(height, width):
        sys.exit(f"Got --resize {side} for images of {height} x {width} pixels. Expected at least the longer side.")
    names = metadata.get("class_names")
    found = Served(
        predict, (height, width, channels), outputs, bool(metadata.get("multi_label")), names,
        side, transforms.get("interpolation", "bilinear"),
    )  # fmt: skip
    classes = found.probabilities(np.zeros((1, height, width, channels), np.uint8)).shape[1]
    if names is not None and len(names) != classes:
        sys.exit(f"The model has {classes} outputs for an image, and {len(names)} class names. Expected as many.")
    return found


def of_resfit(path: Path, size: int | None, resize: int | None) -> Served:
    """Return the model of a file of `Model.export` or `Model.save`; the latter is exported to a temporary file."""
    import resfit

    transforms = None
    if path.suffix == ".safetensors":
        model = resfit.load(path)
        transforms = model.transforms
        size = size or (None if transforms is None else transforms.crop)
        if size is None:
            sys.exit(f"{path} does not contain the size of its images. Pass it: --size 224.")
        with tempfile.TemporaryDirectory() as folder:
            program = Path(folder) / "net.npz"
            shape = (size, size, model.module.spec.in_channels)
            model.export(program, input_shape=shape, input_dtype="uint8", outputs="probabilities")
            exported = resfit.load_exported(program)
    else:
        exported = resfit.load_exported(path)
    first, *others = exported.metadata["inputs"]
    if others:
        sys.exit(f"{path} has {1 + len(others)} inputs. Expected one.")
    found = None if transforms is None else {name: getattr(transforms, name) for name in ("resize", "interpolation")}
    metadata = {"transforms": found} | exported.metadata
    return served(lambda x: np.asarray(exported(x)), first["shape"], first["dtype"], metadata, resize)


def of_onnx(path: Path, threads: int, resize: int | None) -> Served:
    """Return the model of an ONNX file whose input is (batch, height, width, channels), with onnxruntime alone."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    (first,), output = session.get_inputs(), session.get_outputs()[0].name
    dtype = first.type.removeprefix("tensor(").removesuffix(")")
    metadata = {}
    for name, value in session.get_modelmeta().custom_metadata_map.items():
        with contextlib.suppress(ValueError):  # metadata of other programs need not be JSON
            metadata[name] = json.loads(value)
    return served(lambda x: session.run([output], {first.name: x})[0], first.shape, dtype, metadata, resize)


# --- images -----------------------------------------------------------------------------------------------------------


def pixels(body: bytes, model: Served, max_pixels: int) -> np.ndarray:
    """Return the pixels (height, width, channels) uint8 of an image file, as `resfit.transforms.Transforms` does.

    Raises:
        HTTPException: for another format, a damaged file, or too many pixels; those are not decoded.
    """
    try:
        with Image.open(io.BytesIO(body), formats=FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise HTTPException(413, f"got an image of {image.size} pixels, expected at most {max_pixels} in all")
            if image.mode not in MODES:
                raise HTTPException(415, f"got an image of mode {image.mode}, expected 8 bits per channel")
            colors = ImageOps.exif_transpose(image).convert("RGB" if model.shape[2] == 3 else "L")
    except UnidentifiedImageError as error:
        raise HTTPException(415, f"got {len(body)} bytes, expected a file of {', '.join(FORMATS)}") from error
    # Pillow raises different errors for truncated and damaged files, depending on the format.
    except (OSError, SyntaxError, ValueError, EOFError, KeyError, TypeError, Image.DecompressionBombError) as error:
        raise HTTPException(400, f"got a damaged image: {error}") from error
    shorter, (height, width, channels) = min(colors.size), model.shape
    size = [model.resize if side == shorter else int(model.resize * side / shorter) for side in colors.size]
    if max(size) > 50 * model.resize:
        raise HTTPException(400, f"got an image of {colors.size} pixels, expected a ratio of the sides of at most 50")
    resized = colors.resize(size, Image.Resampling[model.interpolation.upper()])
    left, top = round((size[0] - width) / 2), round((size[1] - height) / 2)
    return np.asarray(resized.crop((left, top, left + width, top + height))).reshape(height, width, channels)


# --- batches ----------------------------------------------------------------------------------------------------------


class Batcher:
    """Predicts the images of concurrent requests in batches, in a thread of its own.

    Args:
        model: the model.
        max_batch: the most images of a batch.
        max_wait: the most seconds that the first image of a batch waits for others.
    """

    def __init__(self, model: Served, max_batch: int, max_wait: float) -> None:
        self._model, self._max_batch, self._max_wait = model, max_batch, max_wait
        self._queue: asyncio.Queue[tuple[np.ndarray, asyncio.Future[np.ndarray]]] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1)
        self.batches: list[int] = []  # the sizes of the last thousand batches

    async def __call__(self, image: np.ndarray) -> np.ndarray:
        """Return the probabilities of an image."""
        answer = asyncio.get_running_loop().create_future()
        self._queue.put_nowait((image, answer))
        return await answer

    def warm_up(self) -> None:
        """Compile the program of every size of a batch."""
        size = 1
        while size <= self._max_batch:
            self._model.probabilities(np.zeros((size, *self._model.shape), np.uint8))
            size *= 2

    async def run(self) -> None:
        """Predict batch after batch, until this task is cancelled."""
        while True:
            images, answers = zip(*await self._batch(), strict=True)
            try:
                found = await asyncio.get_running_loop().run_in_executor(self._thread, self._predict, images)
            except Exception as error:  # noqa: BLE001 - every request of the batch raises it
                for answer in answers:
                    if not answer.done():
                        answer.set_exception(error)
                continue
            for answer, one in zip(answers, found, strict=True):
                if not answer.done():  # the client is gone
                    answer.set_result(one)

    async def _batch(self) -> list[tuple[np.ndarray, asyncio.Future[np.ndarray]]]:
        batch = [await self._queue.get()]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._max_wait):
                while len(batch) < self._max_batch:
                    batch.append(await self._queue.get())
        while len(batch) < self._max_batch and not self._queue.empty():
            batch.append(self._queue.get_nowait())
        self.batches = [*self.batches[-999:], len(batch)]
        return batch

    def _predict(self, images: tuple[np.ndarray, ...]) -> np.ndarray:
        size = min(1 << (len(images) - 1).bit_length(), self._max_batch)
        batch = np.zeros((size, *self._model.shape), np.uint8)
        batch[: len(images)] = images
        return self._model.probabilities(batch)[: len(images)]


# --- the server -------------------------------------------------------------------------------------------------------


def application(model: Served, options: argparse.Namespace) -> Starlette:
    """Return the web application."""
    batcher = Batcher(model, options.max_batch, options.max_wait / 1000)
    decoders = ThreadPoolExecutor(os.cpu_count())  # bounds the memory of decoded images

    async def predict(request: Request) -> JSONResponse:
        top = request.query_params.get("top", "5")
        if not re.fullmatch("[1-9][0-9]{0,5}", top):
            raise HTTPException(400, f"got top={top[:20]!r}, expected a positive number of classes")
        body = await read(request, options.max_bytes)
        loop = asyncio.get_running_loop()
        image = await loop.run_in_executor(decoders, pixels, body, model, options.max_pixels)
        found = await batcher(image)
        best = np.argsort(-found, kind="stable")[: int(top)].tolist()
        return JSONResponse({"predictions": [
            {"class": number if model.names is None else model.names[number], "probability": float(found[number])}
            for number in best
        ]})  # fmt: skip

    async def health(_: Request) -> JSONResponse:
        return JSONResponse({"status": "ok", "input": model.shape, "batches": batcher.batches[-20:]})

    async def failed(_: Request, error: Exception) -> JSONResponse:
        if not isinstance(error, HTTPException):
            return JSONResponse({"error": "internal error"}, 500)
        closing = {"Connection": "close"} if error.status_code in (408, 413) else {}
        return JSONResponse({"error": error.detail}, error.status_code, {**(error.headers or {}), **closing})

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        batcher.warm_up()
        running = asyncio.create_task(batcher.run())
        yield
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running

    routes = [Route("/predict", predict, methods=["POST"]), Route("/health", health)]
    return Starlette(routes=routes, lifespan=lifespan, exception_handlers={HTTPException: failed, Exception: failed})


async def read(request: Request, max_bytes: int) -> bytes:
    """Return the body of a request; raise as soon as it is known to be too large, or if it takes too long."""
    too_large = HTTPException(413, f"got a body of more than {max_bytes} bytes, expected at most that many")
    promised = request.headers.get("content-length", "0")
    if not promised.isdecimal() or int(promised) > max_bytes:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                body += part
                if len(body) > max_bytes:
                    raise too_large
    except ClientDisconnect as error:  # nobody reads the answer
        raise HTTPException(400, "the connection was closed inside the body") from error
    except TimeoutError as error:
        raise HTTPException(408, f"the body took more than {BODY_SECONDS} seconds") from error
    return bytes(body)


def serve(model: Served, options: argparse.Namespace) -> None:
    """Serve until SIGTERM or Ctrl-C."""
    import uvicorn

    class Server(uvicorn.Server):
        async def startup(self, *arguments: Any, **named: Any) -> None:
            await super().startup(*arguments, **named)
            for server in self.servers:
                print(f"Serving on http://{options.host}:{server.sockets[0].getsockname()[1]}", flush=True)

    config = uvicorn.Config(
        application(model, options), host=options.host, port=options.port, log_level="warning",
        limit_concurrency=options.max_connections + 1,  # uvicorn counts to less than this number
        timeout_graceful_shutdown=30, lifespan="on",
    )  # fmt: skip
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn has stopped, and raises it again
        Server(config).run()


# --- the load test ----------------------------------------------------------------------------------------------------


def load_test(model: Served, options: argparse.Namespace) -> None:
    """Measure a server in another process, beside direct calls of the model in this one."""
    images = test_images(model)
    print(f"{options.load_test} requests by {options.clients} clients, JPEG files of {len(images[0]):,} bytes")
    stack = np.stack([pixels(image, model, options.max_pixels) for image in images])
    for size in sorted({1, options.max_batch}):
        batch = np.resize(stack, (size, *model.shape))
        model.probabilities(batch)
        calls = max(1, min(options.load_test, 2000) // size)
        start = time.perf_counter()
        for _ in range(calls):
            model.probabilities(batch)
        seconds = time.perf_counter() - start
        print(f"{calls * size / seconds:10.0f} images/s  direct calls, batches of {size}")
    command = [sys.executable, __file__, *sys.argv[1:], "--load-test=0", "--port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            address = re.search(r"http://\S+", server.stdout.readline())
            if address is None:
                sys.exit("The server did not start.")
            host, port = address[0].removeprefix("http://").split(":")
            seconds, taken = requests(host, int(port), images, options.load_test, options.clients)
        finally:
            server.terminate()
    p50, p99 = np.percentile(taken, [50, 99]) * 1000
    print(f"{len(taken) / seconds:10.0f} images/s  by HTTP; latency p50 {p50:.1f} ms, p99 {p99:.1f} ms")


def test_images(model: Served) -> list[bytes]:
    """Return eight JPEG files of smooth noise, a seventh larger than the input of the model."""
    random, files = np.random.default_rng(0), []
    for _ in range(8):
        noise = Image.fromarray(random.integers(0, 256, (16, 16, 3), np.uint8))
        file = io.BytesIO()
        noise.resize([model.resize * 8 // 7] * 2, Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


def requests(host: str, port: int, images: list[bytes], number: int, clients: int) -> tuple[float, list[float]]:
    """Send requests over as many connections as clients; return the seconds of all, and those of each."""
    numbers, taken, lock = iter(range(number)), [], threading.Lock()

    def client() -> None:
        connection = http.client.HTTPConnection(host, port, timeout=60)
        with contextlib.closing(connection):
            while True:
                with lock:
                    turn = next(numbers, None)
                if turn is None:
                    return
                start = time.perf_counter()
                connection.request("POST", "/predict", images[turn % len(images)])
                answer = connection.getresponse()
                said = answer.read()
                if answer.status != 200:
                    raise RuntimeError(f"status {answer.status}: {said!r}")
                taken.append(time.perf_counter() - start)

    start = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        for done in [pool.submit(client) for _ in range(clients)]:
            done.result()
    return time.perf_counter() - start, taken


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "model", type=Path, nargs="?", help="a file of Model.export (.npz) or Model.save (.safetensors)"
    )
    parser.add_argument("--onnx", type=Path, help="an ONNX file instead, for onnxruntime")
    parser.add_argument("--size", type=int, help="side of the images, for a .safetensors file without transforms")
    parser.add_argument("--resize", type=int, help="pixels of the shorter side before the crop (of the model)")
    parser.add_argument("--host", default="127.0.0.1", help="(127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, help="0 selects a free one (8000)")
    for name, default, meaning in (
        ("--max-batch", 16, "images in a batch"),
        ("--max-wait", 2, "milliseconds that a batch waits for more images"),
        ("--max-bytes", 10_000_000, "bytes of a body"),
        ("--max-pixels", 40_000_000, "pixels of an image"),
        ("--max-connections", 256, "open connections"),
        ("--threads", os.cpu_count() or 1, "threads of onnxruntime"),
        ("--clients", 16, "connections of the load test"),
    ):
        parser.add_argument(name, type=int, default=default, help=f"{meaning} ({default})")
    parser.add_argument("--load-test", type=int, default=0, metavar="N", help="measure N requests, at most 100000")
    options = parser.parse_args()
    if (options.model is None) == (options.onnx is None):
        parser.error("expected either the path of a model, or --onnx with that of an ONNX file")
    given = options.onnx or options.model
    if not given.is_file():
        parser.error(f"there is no file {given}")
    for name in ("size", "resize", "max_batch", "max_bytes", "max_pixels", "max_connections", "threads", "clients"):
        value = getattr(options, name)
        if value is not None and value < 1:
            parser.error(f"got --{name.replace('_', '-')} {value}; it must be at least 1")
    if not (0 <= options.load_test <= 100_000 and options.max_wait >= 0 and 0 <= options.port < 65536):
        parser.error("expected --load-test from 0 to 100000, --max-wait of at least 0, and a --port below 65536")
    return options


def main() -> None:
    """Load the model; serve it, or measure it."""
    options = arguments()
    if options.onnx is not None:
        model = of_onnx(options.onnx, options.threads, options.resize)
    else:
        model = of_resfit(options.model, options.size, options.resize)
    (load_test if options.load_test else serve)(model, options)


if __name__ == "__main__":
    main()
