"""The serving recipe answers with the model's own probabilities, in batches, and refuses what it cannot serve."""

import asyncio
import contextlib
import http.client
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import resfit
from resfit.transforms import Transforms
from tests.packages import package
from tests.recipes.fashion import RECIPES, load, percent, run, say

package("starlette")
package("uvicorn")

pytestmark = pytest.mark.slow

NAMES = ["cat", "dog", "cow"]
TRANSFORMS = Transforms(resize=12, crop=8, interpolation="bicubic", mean=None, std=None)


def picture(height: int = 20, width: int = 30, mode: str = "RGB", seed: int = 0) -> Image.Image:
    random = np.random.default_rng(seed)
    return Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8)).convert(mode)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    return load("serve")


@pytest.fixture(scope="module")
def model() -> resfit.Model:
    model = resfit.Model(resfit.create_model("resnet20", num_classes=3, depths=(1,), widths=(4,)))
    model.class_names, model.transforms = NAMES, TRANSFORMS
    return model


@pytest.fixture(scope="module")
def folder(model: resfit.Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a folder with the model as a program and as a model file."""
    folder = tmp_path_factory.mktemp("served")
    model.export(folder / "net.npz", input_shape=(8, 8, 3), input_dtype="uint8")
    model.save(folder / "net.safetensors")
    return folder


def status_of(server: SimpleNamespace) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    with contextlib.closing(connection):
        connection.request("GET", "/health")
        return connection.getresponse().status


@contextlib.contextmanager
def serving(*arguments: Any) -> Iterator[SimpleNamespace]:
    """Start the recipe; yield its process and its port."""
    command = [sys.executable, "-W", "error", str(RECIPES / "serve.py"), *map(str, arguments), "--port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline()
            found = re.search(r"http://127\.0\.0\.1:(\d+)", line)
            assert found, line + process.stderr.read()
            yield SimpleNamespace(process=process, port=int(found[1]))
        finally:
            process.terminate()
            process.wait(60)


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[SimpleNamespace]:
    arguments = ("--max-bytes", 20_000, "--max-pixels", 100_000, "--max-batch", 8, "--max-wait", 300)
    with serving(folder / "net.safetensors", *arguments) as running:
        yield running


def ask(server: SimpleNamespace, path: str, body: Any = None, method: str = "POST") -> tuple[int, dict[str, Any]]:
    """Return status and answer.

    A body can be a number of bytes that is promised, or a list of chunks. Neither is sent to the end, because a server
    may close the connection meanwhile.
    """
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    with contextlib.closing(connection):
        if isinstance(body, int | list):
            connection.putrequest(method, path)
            promised = ("Transfer-Encoding", "chunked") if isinstance(body, list) else ("Content-Length", str(body))
            connection.putheader(*promised)
            connection.endheaders()
            for part in body if isinstance(body, list) else ():
                connection.send(b"%x\r\n%b\r\n" % (len(part), part))
        else:
            connection.request(method, path, body)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())


def expected(model: resfit.Model, image: Image.Image) -> dict[str, float]:
    (found,) = model.predict(TRANSFORMS.batch([image]), outputs="probabilities", verbose=0)
    return dict(zip(NAMES, found.tolist(), strict=True))


def found(answer: dict[str, Any]) -> dict[str, float]:
    return {one["class"]: one["probability"] for one in answer["predictions"]}


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_the_answer_is_the_prediction_of_the_model(
    kind: str, mode: str, server: SimpleNamespace, model: resfit.Model
) -> None:
    body = encoded(picture(mode=mode), kind)
    status, answer = ask(server, "/predict", body)
    assert status == 200
    probabilities = [one["probability"] for one in answer["predictions"]]
    assert probabilities == sorted(probabilities, reverse=True)
    assert found(answer) == pytest.approx(expected(model, Image.open(io.BytesIO(body))), abs=1e-6)
    assert ask(server, "/predict?top=1", body)[1]["predictions"] == answer["predictions"][:1]


@pytest.mark.parametrize("resize", [(9, 8), (12, 8), (8, 8)])
@pytest.mark.parametrize("turned", [False, True])
def test_pixels_are_those_of_the_transforms(recipe: ModuleType, resize: tuple[int, int], turned: bool) -> None:
    transforms = Transforms(*resize, interpolation="bilinear")
    served = recipe.Served(None, (8, 8, 3), "logits", False, None, resize[0], "bilinear")
    image, exif = picture(33, 20), Image.Exif()
    exif[0x0112] = 6 if turned else 1
    body = encoded(image, "JPEG", exif=exif)
    np.testing.assert_array_equal(recipe.pixels(body, served, 10**6), transforms(body))


def bomb() -> bytes:
    return encoded(Image.new("L", (400, 400)))


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("/predict", b"hello", 415, "got 5 bytes, expected a file of JPEG, PNG, WEBP"),
        ("/predict", b"", 415, "got 0 bytes"),
        ("/predict", encoded(picture())[:-200], 400, "got a damaged image"),
        ("/predict", encoded(picture(), "BMP"), 415, "expected a file of"),
        ("/predict", encoded(Image.new("I;16", (9, 9))), 415, "mode I;16, expected 8 bits per channel"),
        ("/predict", encoded(Image.new("L", (9000, 1))), 400, "a ratio of the sides of at most 50"),
        ("/predict", bomb(), 413, "(400, 400) pixels, expected at most 100000"),
        ("/predict", 20_001, 413, "a body of more than 20000 bytes"),
        ("/predict", [b"?" * 15_000] * 2, 413, "a body of more than 20000 bytes"),
        ("/predict?top=0", encoded(picture()), 400, "got top='0'"),
        ("/other", b"", 404, "Not Found"),
    ],
    ids=["text", "empty", "truncated", "bmp", "deep", "long", "bomb", "large", "chunked", "top", "path"],
)
def test_a_bad_request_is_explained(path: str, body: Any, status: int, said: str, server: SimpleNamespace) -> None:
    answered, answer = ask(server, path, body)
    assert (answered, said in answer["error"]) == (status, True), answer
    assert ask(server, "/health", method="GET")[1]["status"] == "ok"


def test_concurrent_requests_are_predicted_in_batches_and_each_gets_its_own_answer(
    server: SimpleNamespace, model: resfit.Model
) -> None:
    images = [picture(seed=seed) for seed in range(20)]
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda image: ask(server, "/predict", encoded(image)), images))
    for image, (status, answer) in zip(images, answers, strict=True):
        assert status == 200
        assert found(answer) == pytest.approx(expected(model, image), abs=1e-6)
    assert 1 < max(ask(server, "/health", method="GET")[1]["batches"]) <= 8


def test_connections_are_limited_and_sigterm_finishes_the_accepted_request_and_stops(folder: Path) -> None:
    arguments = (folder / "net.npz", "--max-wait", 1000, "--resize", 12, "--max-connections", 2)
    with serving(*arguments) as server, ThreadPoolExecutor(1) as pool:
        idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(2)]
        assert status_of(server) == 503
        idle[0].close()
        while status_of(server) == 503:
            time.sleep(0.05)
        idle[1].close()
        answer = pool.submit(ask, server, "/predict", encoded(picture()))
        time.sleep(0.5)
        server.process.send_signal(signal.SIGTERM)
        assert answer.result()[0] == 200
        assert server.process.wait(60) in (0, -signal.SIGTERM)
        assert set(server.process.stderr.read().splitlines()) == {"WARNING:  Exceeded concurrency limit."}


def test_the_load_test_prints_latencies_and_rates(folder: Path) -> None:
    text = run("serve.py", str(folder / "net.npz"), "--load-test", "40", "--clients", "4", "--max-batch", "4")
    assert "40 requests by 4 clients" in text
    assert percent(r"(\d+) images/s  direct calls, batches of 4", text) > 0
    assert percent(r"(\d+) images/s  by HTTP", text) > 0
    assert percent(r"p50 (\d+\.\d+) ms", text) <= percent(r"p99 (\d+\.\d+) ms", text)


def test_a_slow_body_is_not_waited_for(recipe: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow:
        headers: dict[str, str] = {}  # noqa: RUF012

        async def stream(self) -> AsyncIterator[bytes]:
            yield b"?"
            await asyncio.sleep(60)

    monkeypatch.setattr(recipe, "BODY_SECONDS", 0.01)
    with pytest.raises(recipe.HTTPException, match=r"took more than 0\.01 seconds") as raised:
        asyncio.run(recipe.read(Slow(), 100))
    assert raised.value.status_code == 408


def test_a_body_that_its_client_leaves_is_a_bad_request(recipe: ModuleType) -> None:
    class Left:
        headers: dict[str, str] = {}  # noqa: RUF012

        async def stream(self) -> AsyncIterator[bytes]:
            yield b"?"
            raise recipe.ClientDisconnect

    with pytest.raises(recipe.HTTPException, match="closed inside the body") as raised:
        asyncio.run(recipe.read(Left(), 100))
    assert raised.value.status_code == 400


def test_another_method_is_answered_with_the_allowed_ones(server: SimpleNamespace) -> None:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)) as connection:
        connection.request("OPTIONS", "/predict")
        answer = connection.getresponse()
        assert (answer.status, answer.getheader("Allow")) == (405, "POST")


def test_an_error_of_the_model_is_answered_and_the_next_batch_is_predicted(recipe: ModuleType) -> None:
    calls = iter([RuntimeError("first"), None])

    def predict(images: np.ndarray) -> np.ndarray:
        if error := next(calls):
            raise error
        return np.zeros((len(images), 2))

    async def both() -> list[Any]:
        batcher = recipe.Batcher(recipe.Served(predict, (1, 1, 3), "logits", False, None, 1, "bilinear"), 4, 0.0)
        running = asyncio.create_task(batcher.run())
        image = np.zeros((1, 1, 3), np.uint8)
        found = [await asyncio.gather(batcher(image), return_exceptions=True) for _ in range(2)]
        running.cancel()
        return [one for (one,) in found]

    error, answer = asyncio.run(both())
    assert str(error) == "first"
    assert answer.tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "expected either the path of a model, or --onnx"),
        (["none.npz"], "there is no file none.npz"),
        (["{net}", "--max-batch", "0"], "got --max-batch 0; it must be at least 1"),
        (["{net}", "--load-test", "1000001"], "--load-test from 0 to 100000"),
    ],
)
def test_bad_arguments_are_named(recipe: ModuleType, arguments: list[str], said: str, folder: Path) -> None:
    assert said in say(recipe, *(one.format(net=folder / "net.npz") for one in arguments), status=2)


def test_help_describes_the_recipe(recipe: ModuleType) -> None:
    text = say(recipe, "--help", status=0)
    for said in ("--onnx", "--max-batch", "--max-pixels", "--load-test", "resfit[serve]", "/health"):
        assert said in text


def test_a_model_that_cannot_be_served_is_described(recipe: ModuleType, model: resfit.Model, tmp_path: Path) -> None:
    model.export(tmp_path / "float.npz", input_shape=(8, 8, 3), input_dtype="float32")
    model.export(tmp_path / "labels.npz", input_shape=(8, 8, 3), input_dtype="uint8", outputs="labels")
    untold = resfit.Model(resfit.create_model("resnet20", num_classes=3, depths=(1,), widths=(4,)))
    untold.save(tmp_path / "untold.safetensors")
    for name, said in (
        ("float.npz", "dtype float32"), ("labels.npz", "to labels"), ("untold.safetensors", "--size 224"),
    ):  # fmt: skip
        with pytest.raises(SystemExit, match=said):
            recipe.of_resfit(tmp_path / name, None, None)
    with pytest.raises(SystemExit, match="Got --resize 4 for images of 8 x 8"):
        recipe.of_resfit(tmp_path / "untold.safetensors", 8, 4)
    assert recipe.of_resfit(tmp_path / "untold.safetensors", 8, 9).resize == 9


@pytest.mark.parametrize("classes", [1, 3])
def test_one_output_has_two_probabilities(recipe: ModuleType, classes: int) -> None:
    logits = np.log(np.array([[3.0, 1.0, 1.0]]))[:, :classes]
    served = recipe.Served(lambda _: logits, (1, 1, 3), "logits", False, None, 1, "bilinear")
    wanted = [0.25, 0.75] if classes == 1 else [0.6, 0.2, 0.2]
    np.testing.assert_allclose(served.probabilities(np.zeros((1, 1, 1, 3), np.uint8)), [wanted], rtol=1e-6)


# --- onnxruntime ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metadata", [{}, {"class_names": json.dumps(NAMES), "outputs": '"logits"', "author": "me"}],
                         ids=["bare", "described"])  # fmt: skip
def test_onnxruntime_serves_without_resfit(metadata: dict[str, str], recipe: ModuleType, tmp_path: Path) -> None:
    package("onnxruntime")
    onnx = package("onnx")
    helper, kinds = onnx.helper, onnx.TensorProto
    graph = helper.make_graph(
        [helper.make_node("Cast", ["x"], ["float"], to=kinds.FLOAT),
         helper.make_node("ReduceMean", ["float"], ["mean"], axes=[1, 2], keepdims=0),
         helper.make_node("Mul", ["mean", "scale"], ["logits"])],
        "net",
        [helper.make_tensor_value_info("x", kinds.UINT8, ["batch", 8, 8, 3])],
        [helper.make_tensor_value_info("logits", kinds.FLOAT, ["batch", 3])],
        [helper.make_tensor("scale", kinds.FLOAT, [], [1 / 64])],
    )  # fmt: skip
    net = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    helper.set_model_props(net, metadata)
    path = tmp_path / "net.onnx"
    path.write_bytes(net.SerializeToString())
    image = picture(8, 8)
    logits = np.asarray(image, np.float64).mean((0, 1)) / 64
    wanted = np.exp(logits) / np.exp(logits).sum()
    program = f"import sys; sys.modules |= dict.fromkeys(['jax', 'resfit']); sys.argv = {['', '--onnx', str(path)]}"
    script = f"{program} + ['--port=0']; sys.path.insert(0, {str(RECIPES)!r}); import serve; serve.main()"
    command = [sys.executable, "-W", "error", "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ) as process:
        try:
            port = int(percent(r":(\d+)$", process.stdout.readline().strip()))
            status, answer = ask(SimpleNamespace(port=port), "/predict", encoded(image))
        finally:
            process.terminate()
    assert status == 200
    names = NAMES if metadata else range(3)
    assert found(answer) == pytest.approx(dict(zip(names, wanted, strict=True)), abs=1e-5)
