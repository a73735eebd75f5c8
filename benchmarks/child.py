"""Processes that exist side by side and work one at a time, so that the threads of libraries do not disturb each other.

A child reads calls from its standard input, and answers with the result and the time.
"""

import contextlib
import json
import os
import pkgutil
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any, NamedTuple, Self

ROOT = Path(__file__).parents[1]

# Every start compiles, because peak memory would depend on earlier runs otherwise. Children share the memory of a GPU.
ENVIRONMENT = {
    "RESFIT_COMPILATION_CACHE": "off",
    "JAX_ENABLE_COMPILATION_CACHE": "false",
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    "KERAS_BACKEND": "jax",
    "TF_CPP_MIN_LOG_LEVEL": "2",
}


class ChildError(Exception):
    """A call in a child failed."""


class Reply(NamedTuple):
    """The result of a call, and its seconds."""

    result: Any
    wall: float
    processor: float  # of all threads
    thread: float  # of the main thread


class Child:
    """A process that executes calls.

    Args:
      environment: environment variables in addition to those of this process.
    """

    def __init__(self, environment: dict[str, str] | None = None) -> None:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            cwd=ROOT,
            env=os.environ | ENVIRONMENT | (environment or {}),
        )
        self._tell: Any = self._process.stdin
        self._hear: Any = self._process.stdout

    def call(self, name: str, /, **arguments: Any) -> Reply:
        """Call "package.module:function", or "package.module:Class" and keep the object, or ".method" of that object.

        Raises:
          ChildError: with the exception of the child, or its last output if it died.
        """
        with contextlib.suppress(BrokenPipeError):  # it is dead: its output has the reason
            self._tell.write(json.dumps([name, arguments]) + "\n")
            self._tell.flush()
        line = self._hear.readline()
        if not line:
            self._errors.seek(0)
            raise ChildError(f"{name} ended with {self._process.wait()}:\n{self._errors.read()[-2000:]}")
        reply = json.loads(line)
        if "error" in reply:
            raise ChildError(f"{name} raised:\n{reply['error']}")
        return Reply(**reply)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._tell.close()  # the end of the input ends the child
        self._process.wait()
        self._hear.close()
        self._errors.close()


def ask(name: str, environment: dict[str, str] | None = None, /, **arguments: Any) -> Any:
    """Return the result of a function in its own process."""
    with Child(environment) as child:
        return child.call(name, **arguments).result


def peak_memory() -> int:
    """Return the peak memory of this process in bytes.

    On Linux this is not ru_maxrss, which includes the peak of the parent process.
    """
    with contextlib.suppress(FileNotFoundError):
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _serve() -> None:
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # discards the printed progress
    kept: Any = None
    for line in sys.stdin:
        name, arguments = json.loads(line)
        try:
            target = getattr(kept, name[1:]) if name.startswith(".") else pkgutil.resolve_name(name)
            clocks = _now()
            result = target(**arguments)
            clocks = [now - then for now, then in zip(_now(), clocks, strict=True)]
            if isinstance(target, type):
                kept, result = result, None
            reply = dict(zip(Reply._fields, (result, *clocks), strict=True))
        except Exception:  # noqa: BLE001 - the parent gets any exception
            reply = {"error": traceback.format_exc()}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


def _now() -> list[float]:
    return [time.perf_counter(), time.process_time(), time.thread_time()]


if __name__ == "__main__":
    _serve()
