"""precision="auto" chooses bfloat16 where the device has units for it, and says why."""

from types import SimpleNamespace
from typing import Any

import pytest
from flax import nnx

from resfit.backends import cpu_flags, onednn
from resfit.callbacks import Checkpoint
from resfit.errors import ResumeError
from resfit.trainer import precision
from resfit.trainer.precision import resolve_precision
from tests.helpers import TinyNet, compiled, compiled_of, fit


def device(platform: str, **more: Any) -> Any:
    return SimpleNamespace(platform=platform, device_kind=f"a {platform}", **more)


@pytest.mark.parametrize(
    ("on", "flags", "by_onednn", "expected"),
    [
        (device("cpu"), {"avx2"}, True, ("float32", "this processor has none of amx_bf16, avx512_bf16")),
        (device("cpu"), set(), False, ("float32", "this processor has none of amx_bf16, avx512_bf16")),
        (device("cpu"), {"avx512_bf16"}, True, ("bfloat16", "this processor has avx512_bf16")),
        (device("cpu"), {"avx512_bf16", "amx_bf16"}, True, ("bfloat16", "this processor has amx_bf16")),
        (
            device("cpu"),
            {"avx512_bf16"},
            False,
            ("float32", "this processor has avx512_bf16, but oneDNN, which uses it, is not in use"),
        ),
        (device("gpu", compute_capability="9.0"), set(), False, ("bfloat16", "a gpu has tensor cores for bfloat16")),
        (device("gpu", compute_capability="12.0"), set(), False, ("bfloat16", "a gpu has tensor cores for bfloat16")),
        (
            device("gpu", compute_capability="7.5"),
            set(),
            False,
            ("float32", "a gpu has no known tensor cores for bfloat16"),
        ),
        (
            device("gpu", compute_capability="gfx90a"),
            set(),
            False,
            ("float32", "a gpu has no known tensor cores for bfloat16"),
        ),
        (device("tpu"), set(), False, ("bfloat16", "a tpu multiplies in bfloat16")),
        (device("other"), set(), False, ("float32", "nothing is known about the platform 'other'")),
    ],
    ids=lambda value: value.platform if isinstance(value, SimpleNamespace) else None,
)
def test_auto_depends_on_the_units_of_the_device(
    on: Any, flags: set[str], by_onednn: bool, expected: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "cpu_flags", lambda: frozenset(flags))
    assert resolve_precision("auto", on, by_onednn=by_onednn) == expected
    for choice in ("float32", "bfloat16"):
        assert resolve_precision(choice, on, by_onednn=by_onednn) == (choice, "")


def test_flags_are_those_of_linux(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text("processor\t: 0\nflags\t\t: fpu avx512_bf16\n\nprocessor\t: 1\nflags\t\t: fpu avx512_bf16\n")
    monkeypatch.setattr(cpu_flags, "FILE", file)
    assert cpu_flags.cpu_flags() == {"fpu", "avx512_bf16"}
    monkeypatch.setattr(cpu_flags, "FILE", tmp_path / "missing")
    assert cpu_flags.cpu_flags() == set()


@pytest.mark.skipif(onednn.why_not() is not None, reason="oneDNN cannot be used here")
def test_the_log_and_the_checkpoint_state_the_choice(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def model(choice: str) -> Any:
        return compiled(TinyNet(rngs=nnx.Rngs(0)), precision=choice)

    monkeypatch.setattr(precision, "cpu_flags", lambda: frozenset({"avx512_bf16"}))
    with caplog.at_level("INFO", "resfit"):
        fit(model("auto"), callbacks=[Checkpoint("run")])
    assert "bfloat16 (this processor has avx512_bf16); BatchNorm" in caplog.text
    assert compiled_of(model("auto")).fingerprint()["precision"] == "bfloat16"
    assert compiled_of(model("auto")).asked.precision == "auto"
    again = fit(model("bfloat16"), epochs=2, callbacks=[Checkpoint("run")], resume=True)
    assert len(again.history["loss"]) == 2
    monkeypatch.setattr(precision, "cpu_flags", lambda: frozenset())
    with pytest.raises(ResumeError, match="precision"):
        fit(model("auto"), epochs=3, callbacks=[Checkpoint("run")], resume=True)


def test_the_default_is_float32(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "resfit"):
        model = compiled(TinyNet(rngs=nnx.Rngs(0)))
        fit(model)
    assert compiled_of(model).config.precision == "float32"
    assert "float32; BatchNorm" in caplog.text
