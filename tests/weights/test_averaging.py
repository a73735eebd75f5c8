"""`weights.average`: the weighted mean of files, models, modules and dicts of arrays."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

import resfit
from resfit.errors import SavedModelError, WeightsError
from resfit.weights import average
from tests.helpers import PlainNet, TinyNet, assert_close, assert_same, compiled, fit, images, labels

DTYPES = ["float16", "float32", "float64", jnp.bfloat16, "complex64"]


def net(seed: int) -> Any:
    return resfit.create_model("resnet20", num_classes=3, in_channels=1, depths=(1,), widths=(4,), rngs=seed)


@given(
    seed=st.integers(0, 99), dtype=st.sampled_from(DTYPES),
    weights=st.none() | st.lists(st.floats(0, 9), min_size=3, max_size=3).filter(lambda w: sum(w) > 1e-3),
)  # fmt: skip
def test_an_average_is_the_weighted_mean_in_float64(seed: int, dtype: Any, weights: list[float] | None) -> None:
    random = np.random.default_rng(seed)
    sources = [{"a.w": random.normal(size=(2, 3)).astype(dtype), "n": np.int64(i), "m": np.arange(3) > i}
               for i in range(3)]  # fmt: skip
    found = average(sources, weights)
    expected = np.average([s["a.w"].astype(np.complex128) for s in sources], axis=0, weights=weights)
    if not np.iscomplexobj(sources[0]["a.w"]):
        expected = expected.real
    assert found["a.w"].dtype == np.dtype(dtype)
    eps = 2 * float(jnp.finfo(dtype).eps)  # a sum in the dtype itself would err by more
    np.testing.assert_allclose(found["a.w"].astype(np.complex128), expected, rtol=eps, atol=eps)
    assert found["n"] == 0  # integers and booleans are those of the first source
    assert_same(found["m"], sources[0]["m"])


def test_files_of_every_form_are_averaged(tmp_path: Path) -> None:
    nets = [net(seed) for seed in range(2)]
    for i, each in enumerate(nets):
        resfit.Model(each).save(tmp_path / f"{i}.safetensors")
        resfit.weights.save(each, tmp_path / f"public{i}.safetensors")
        np.savez(tmp_path / f"{i}.npz", **resfit.weights.state_dict(each))
    mean = average(nets)
    assert_same(average([tmp_path / "0.safetensors", str(tmp_path / "1.safetensors")]), mean)
    assert_same(average([resfit.Model(nets[0]), tmp_path / "1.safetensors"]), mean)
    assert_same(average(tmp_path / f"{i}.safetensors" for i in range(2)), mean)
    soup = resfit.Model(net(2))
    soup.load_weights(mean)
    assert_close(
        {name: np.asarray(a) for name, a in mean.items()},
        {name: (np.asarray(a) + np.asarray(b)) / 2 for (name, a), b in zip(
            average([nets[0]]).items(), average([nets[1]]).values(), strict=True)},
    )  # fmt: skip
    for kind in ("public{}.safetensors", "{}.npz"):
        public, other = average([tmp_path / kind.format(i) for i in range(2)]), net(3)
        resfit.weights.load_state_dict(other, public)
        assert_same(average([other]), average([soup]))


def test_a_file_of_torch_is_averaged_with_its_arrays() -> None:
    path = Path(__file__).parents[1] / "golden" / "torch_files" / "state.pth"
    arrays = resfit.weights.read(path)
    twice = {name: 3 * array for name, array in arrays.items()}
    found = average([path, twice])
    for name, array in arrays.items():
        floating = np.issubdtype(array.dtype, np.floating)
        np.testing.assert_allclose(found[name], 2 * array if floating else array, rtol=1e-6)


def test_the_averaged_statistics_are_replaced_by_a_recalibration() -> None:
    x, y, models = images(16), labels(16), []
    for seed in range(2):
        model = compiled(TinyNet(rngs=nnx.Rngs(0)), seed=seed)
        fit(model, x, y, epochs=3)
        models.append(model)
    soup = resfit.Model(TinyNet(rngs=nnx.Rngs(5)))
    soup.load_weights(average(models))
    assert_close(soup.get_weights(), [(a + b) / 2 for a, b in zip(*(m.get_weights() for m in models), strict=True)])
    resfit.recalibrate(soup, x)
    own = np.asarray(soup.module.conv(x), np.float64).mean(axis=(0, 1, 2))
    np.testing.assert_allclose(soup.module.norm.mean.get_value(), own, atol=1e-5)


GOOD = {"w": np.ones((2, 3), np.float32), "b": np.ones(3, np.float32)}


@pytest.mark.parametrize(
    ("sources", "weights", "message"),
    [
        ([GOOD, {"w": GOOD["w"]}], None, r"source 1 \(a dict\) lacks 'b'\. Expected arrays of the same names"),
        ([GOOD, GOOD | {"c": np.ones(1)}], None, r"source 1 \(a dict\) has 'c' too"),
        ([GOOD, GOOD, GOOD | {"w": np.ones((3, 2))}], None, r"'w' is float32\[2, 3\], and float64\[3, 2\] in source 2"),
        ([GOOD, GOOD | {"b": np.ones(3, int)}], None, r"'b' is float32\[3\], and int64\[3\] in source 1"),
        ([GOOD, {str(i): np.ones(1) for i in range(5)}], None, r"has '2' too; and 4 more differences"),
        ([GOOD, GOOD | {"b": np.array([1, np.nan, 1])}], None, r"'b' of source 1 \(a dict\) has NaN"),
        ([GOOD], [1.0, 2.0], r"weights=\[1\.0, 2\.0\] for 1 sources"),
        ([GOOD, GOOD], [0, 0], r"weights=\[0, 0\] for 2 sources\. Expected one number of 0 or more for each"),
        ([GOOD, GOOD], [2, -1], r"weights=\[2, -1\]"),
        ([GOOD, GOOD], ["a", 1], r"weights=\['a', 1\]"),
        ([GOOD, GOOD], 0.5, r"weights=0\.5 for 2 sources"),
        ([], None, "average got no sources"),
        (GOOD, None, r"source 0 \(a dict\) as sources\. Expected a list"),
        ("a.safetensors", None, r"got 'a\.safetensors' as sources\. Expected a list"),
        ([GOOD, 3], None, r"average got source 1 \(a int\)\. Expected the path of a file, a resfit\.Model"),
        ([net(0), PlainNet(rngs=nnx.Rngs(0))], None, r"source 1 \(a PlainNet\) has 'head\.bias' too"),
    ],
    ids=["a missing array", "another array", "another shape", "another kind", "many differences", "nan", "two weights",
         "zeros", "a negative weight", "text", "one number", "none", "a dict", "a path", "a number", "modules"],
)  # fmt: skip
def test_sources_that_cannot_be_averaged_raise(sources: Any, weights: Any, message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        average(sources, weights)


def test_the_error_names_the_file(tmp_path: Path) -> None:
    for name, module in (("a", PlainNet(rngs=nnx.Rngs(0))), ("b", PlainNet(4, rngs=nnx.Rngs(0)))):
        resfit.Model(module).save(tmp_path / f"{name}.safetensors")
    with pytest.raises(
        WeightsError, match=r"Compared with '.*a\.safetensors': 'head\.bias' is .*in '.*b\.safetensors'"
    ):
        average([tmp_path / "a.safetensors", tmp_path / "b.safetensors"])


def test_names_of_another_library_raise_in_load_weights_with_the_function_that_reads_them() -> None:
    state = resfit.weights.state_dict(net(0))
    with pytest.raises(SavedModelError, match=r"missing head.*unexpected .*load_state_dict\(model\.module, arrays\)"):
        resfit.Model(net(1)).load_weights(state)
