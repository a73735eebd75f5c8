"""The most probable classes by name."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import resfit
from resfit.errors import DataError, LabelError, MissingPackageError
from tests.helpers import CLASSES, compiled, images


@given(classes=st.integers(1, 7), k=st.integers(1, 9), seed=st.integers(0, 99))
def test_top_k_returns_the_largest_in_descending_order_with_their_names(classes: int, k: int, seed: int) -> None:
    rows = np.random.default_rng(seed).dirichlet(np.ones(classes), size=3)
    names = [f"class {i}" for i in range(classes)]
    for row, found in zip(rows, resfit.top_k(rows, k, names), strict=True):
        values = [value for _, value in found]
        assert values == sorted(row, reverse=True)[:k]
        assert all(row[names.index(name)] == value for name, value in found)


def test_without_names_top_k_returns_numbers_and_ties_keep_their_order() -> None:
    assert resfit.top_k([[0.25, 0.25, 0.5]], 3) == [[(2, 0.5), (0, 0.25), (1, 0.25)]]


@pytest.mark.parametrize(
    "outputs",
    [[[2.0, -1.0]], [[0.5, 0.4]], [[float("nan"), 1.0]], [0.5, 0.5], [[1, 0]]],
    ids=["logits", "a sum below one", "NaN", "one row", "integers"],
)
def test_values_that_are_not_probabilities_raise(outputs: Any) -> None:
    with pytest.raises(LabelError, match="probabilities"):
        resfit.top_k(outputs)


@pytest.mark.parametrize(
    ("k", "names"), [(0, None), (True, None), (1.0, None), (1, ["a"]), (1, "ab"), (1, [1, 2]), (1, 2)]
)
def test_invalid_counts_and_names_raise(k: Any, names: Any) -> None:
    with pytest.raises(DataError, match="Expected"):
        resfit.top_k([[0.5, 0.5]], k, names)


def test_a_models_names_must_be_as_many_as_its_classes() -> None:
    model = resfit.Model(resfit.create_model("resnet20", num_classes=3, depths=(1,), widths=(4,)))
    assert model.class_names is None
    with pytest.raises(DataError, match="3 classes"):
        model.class_names = ["cat", "dog"]
    model.class_names = ("cat", "dog", "cow")
    assert model.class_names == ["cat", "dog", "cow"]
    model.class_names = None
    assert model.class_names is None


def test_names_of_another_head_are_not_kept_silently() -> None:
    model = resfit.Model(resfit.create_model("resnet20", num_classes=3, depths=(1,), widths=(4,)))
    model.class_names = ["cat", "dog", "cow"]
    model.module.replace_head(2)
    with pytest.raises(DataError, match=r"Set model\.class_names to"):
        model.compile("sgd", dispatch="jit")
    model.class_names = ["hen", "owl"]
    model.compile("sgd", dispatch="jit")


def test_class_names_work_with_any_module() -> None:
    model = compiled()
    model.class_names = ["cat", "dog", "cow"]
    probabilities = model.predict(images(4), outputs="probabilities", verbose=0)
    best = resfit.top_k(probabilities, 1, model.class_names)
    numbers = model.predict(images(4), outputs="labels", verbose=0)
    assert [row[0][0] for row in best] == [model.class_names[number] for number in numbers]
    assert len(best) == 4
    assert probabilities.shape == (4, CLASSES)


def test_imagenet_names_are_read_without_importing_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"thing {i}" for i in range(1000)]
    (tmp_path / "torchvision" / "models").mkdir(parents=True)
    (tmp_path / "torchvision" / "__init__.py").write_text("raise RuntimeError('imported')\n")
    meta = tmp_path / "torchvision" / "models" / "_meta.py"
    meta.write_text(f"_OTHER = 1\n_IMAGENET_CATEGORIES = {names!r}\n")
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    assert resfit.imagenet_class_names() == names
    meta.write_text("_OTHER = 1\n")
    with pytest.raises(MissingPackageError, match="torchvision"):
        resfit.imagenet_class_names()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match="pip install torchvision"):
        resfit.imagenet_class_names()
