"""PyTorch in a bare loop, channels last: eager or `torch.compile`, on all cores or one, whichever was fastest."""

import os
import time
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks import contestants, problems
from benchmarks.child import peak_memory


class ConvNorm(nn.Sequential):
    """Convolution and BatchNorm."""

    def __init__(self, channels: int, width: int, kernel: int, strides: int = 1, *, zero: bool = False) -> None:
        conv = nn.Conv2d(channels, width, kernel, strides, kernel // 2, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        super().__init__(conv, nn.BatchNorm2d(width))
        if zero:
            nn.init.zeros_(self[1].weight)


class PadShortcut(nn.Module):
    """A shortcut of option A."""

    def __init__(self, extra: int, strides: int) -> None:
        super().__init__()
        self.extra, self.strides = extra, strides

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.pad(x[:, :, :: self.strides, :: self.strides], (0, 0, 0, 0, 0, self.extra))


class Block(nn.Module):
    """A basic or bottleneck block."""

    def __init__(self, spec: dict[str, Any], channels: int, width: int, strides: int) -> None:
        super().__init__()
        if spec["block"] == "basic":
            self.out = width
            self.branch = nn.Sequential(
                ConvNorm(channels, width, 3, strides), nn.ReLU(inplace=True), ConvNorm(width, width, 3, zero=True)
            )
        else:
            self.out = 4 * width
            self.branch = nn.Sequential(
                ConvNorm(channels, width, 1), nn.ReLU(inplace=True),
                ConvNorm(width, width, 3, strides), nn.ReLU(inplace=True),
                ConvNorm(width, self.out, 1, zero=True),
            )  # fmt: skip
        self.shortcut: nn.Module = nn.Identity()
        if strides > 1 or channels != self.out:
            projects = spec["shortcut"] != "A"
            self.shortcut = (
                ConvNorm(channels, self.out, 1, strides) if projects else PadShortcut(self.out - channels, strides)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.branch(x) + self.shortcut(x))


def network(spec: dict[str, Any]) -> nn.Module:
    """Build a ResNet from a spec of resfit."""
    channels = spec["widths"][0]
    imagenet = spec["stem"] == "imagenet"
    parts: list[nn.Module] = [ConvNorm(spec["in_channels"], channels, 7 if imagenet else 3, 2 if imagenet else 1)]
    parts.append(nn.ReLU(inplace=True))
    if imagenet:
        parts.append(nn.MaxPool2d(3, 2, 1))
    for stage, (depth, width) in enumerate(zip(spec["depths"], spec["widths"], strict=True)):
        for position in range(depth):
            parts.append(Block(spec, channels, width, 2 if stage and not position else 1))
            channels = parts[-1].out
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, spec["num_classes"]))


class Way:
    """A network, eager or compiled, and its optimizer."""

    def __init__(self, problem: problems.Problem, device: str, compiled: bool) -> None:
        net = network(problem.spec).to(device=device, memory_format=torch.channels_last)
        self.net = torch.compile(net) if compiled else net
        self.optimizer = torch.optim.SGD(
            net.parameters(), contestants.LEARNING_RATE, contestants.MOMENTUM, nesterov=True, fused=True
        )
        self._device, self._half = device, problem.spec.get("dtype") == "bfloat16"

    def train(self, x: torch.Tensor, y: torch.Tensor, batch: int, random: np.random.Generator) -> float:
        """Train an epoch in a new order and return the mean loss."""
        self.net.train()
        total = torch.zeros((), device=self._device)
        order = torch.from_numpy(random.permutation(len(x)))
        for rows in order.split(batch):
            images, labels = x[rows].to(self._device), y[rows].to(self._device)
            self.optimizer.zero_grad(set_to_none=True)
            with torch.autocast(self._device, torch.bfloat16, enabled=self._half):
                loss = nn.functional.cross_entropy(self.net(images), labels)
            loss.backward()
            self.optimizer.step()
            total += loss.detach()
        return float(total) / len(order.split(batch))

    def predict(self, x: torch.Tensor, batch: int) -> list[int]:
        """Predict all images and return the shape of the outputs."""
        self.net.eval()
        with torch.inference_mode(), torch.autocast(self._device, torch.bfloat16, enabled=self._half):
            return list(torch.cat([self.net(images.to(self._device)).cpu() for images in x.split(batch)]).shape)


class Contestant:
    """The contestant PyTorch."""

    def __init__(self, platform: str, name: str, steps: int | None = None, resident: bool = False) -> None:
        self._cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(self._cores)
        self._problem = problems.problem(platform, name, steps)
        x, y = problems.images(self._problem)
        # NHWC memory in NCHW order is channels last.
        self._x, self._y = torch.from_numpy(x).permute(0, 3, 1, 2), torch.from_numpy(y).long()
        self._random = np.random.default_rng(0)
        self._device = "cuda" if platform == "gpu" else "cpu"
        if resident:
            self._x, self._y = self._x.to(self._device), self._y.to(self._device)
        self._way: Way | None = None
        self._remark = ""

    def train(self) -> float:
        if self._way is None:
            self._choose()
        return self._train(self._way)

    def predict(self) -> list[int]:
        return self._way.predict(self._x, self._problem.batch)

    def facts(self) -> dict[str, Any]:
        parameters = sum(parameter.numel() for parameter in self._way.net.parameters())
        peak = peak_memory()
        return {"parameters": parameters, "peak_memory": peak, "temporary_memory": None, "remark": self._remark}

    def _choose(self) -> None:
        """Try eager and compiled, then the faster one on a single thread, which is faster for tiny images."""
        problem = self._problem
        seconds: dict[tuple[str, int], float] = {}
        ways = {"eager": Way(problem, self._device, False), "torch.compile": Way(problem, self._device, True)}
        for name in list(ways):
            try:
                seconds[name, self._cores] = self._tried(ways[name])
            except torch._dynamo.exc.TorchDynamoException as error:  # without a C++ compiler; the note says so
                del ways[name]
                self._remark = f"; torch.compile failed: {type(error).__name__}"
        name = min(seconds, key=seconds.__getitem__)[0]
        torch.set_num_threads(1)
        seconds[name, 1] = self._tried(ways[name])
        name, threads = min(seconds, key=seconds.__getitem__)
        torch.set_num_threads(threads)
        self._way = ways[name]
        tried = ", ".join(f"{way} on {n} {value * 1e3:.4g} ms" for (way, n), value in seconds.items())
        self._remark = f"{name} on {threads} thread(s); tried: {tried}{self._remark}"

    def _tried(self, way: Way) -> float:
        """Return the seconds of a step: the minimum of ten, or of as many as fit into a few seconds."""
        batch = self._problem.batch
        x, y = self._x[:batch], self._y[:batch]
        way.train(x, y, batch, self._random)  # compiles
        seconds: list[float] = []
        while len(seconds) < 10 and sum(seconds) < 5:
            start = time.perf_counter()
            way.train(x, y, batch, self._random)
            seconds.append(time.perf_counter() - start)
        return min(seconds)

    def _train(self, way: Way) -> float:
        return way.train(self._x, self._y, self._problem.batch, self._random)
