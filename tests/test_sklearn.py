"""`resfit.sklearn.Classifier` passes the checks of scikit-learn, works with its tools, and has the bits of a Model."""

import functools
import pickle
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

import resfit
from resfit import errors
from resfit.sklearn import Classifier
from tests.helpers import PlainNet, images, labels


class Layers(nnx.Module):
    """Two dense layers on rows."""

    def __init__(self, num_classes: int, in_channels: int, rngs: nnx.Rngs) -> None:
        self.hidden = nnx.Linear(in_channels, 16, rngs=rngs)
        self.head = nnx.Linear(16, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(nnx.relu(self.hidden(x)))


ESTIMATOR = Classifier(Layers, epochs=20, learning_rate=0.03)

# Checks of scikit-learn that do not pass, with the reason.
EXPECTED_TO_FAIL = {
    "check_sample_weight_equivalence_on_dense_data": "A weight of 2 equals two copies of the example only if both are "
    "in one batch, and then to the last bits of float32; the check asks for 1e-7."
}


def plain(**arguments: Any) -> Classifier:
    return Classifier(functools.partial(PlainNet, 3), **{"epochs": 2, "batch_size": 8, "random_state": 0, **arguments})


@pytest.mark.parametrize(
    "name",
    [
        "check_classifier_data_not_an_array",
        "check_dict_unchanged",
        "check_dont_overwrite_parameters",
        "check_estimator_sparse_array",
        "check_estimators_nan_inf",
        "check_fit1d",
        "check_no_attributes_set_in_init",
        "check_parameters_default_constructible",
        "check_requires_y_none",
    ],
)
def test_a_check_of_scikit_learn_passes(name: str) -> None:
    from sklearn.utils import estimator_checks  # slow to import

    getattr(estimator_checks, name)("Classifier", Classifier(Layers, epochs=1))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the checks ask for some warnings, and raise for others
def test_every_other_check_of_scikit_learn_passes_or_has_a_reason() -> None:
    from sklearn.utils.estimator_checks import check_estimator

    found = check_estimator(ESTIMATOR, expected_failed_checks=EXPECTED_TO_FAIL, on_skip=None, on_fail=None)
    assert {one["check_name"] for one in found if one["status"] == "xfail"} == set(EXPECTED_TO_FAIL)
    assert {one["check_name"]: one["exception"] for one in found if one["status"] == "failed"} == {}
    assert len(found) > 50


def test_an_estimator_that_changes_its_parameters_fails_a_check() -> None:
    from sklearn.utils import estimator_checks

    class Changing(Classifier):
        def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
            self.extra = 1
            return super().fit(X, y, sample_weight)

    with pytest.raises(AssertionError, match="extra"):
        estimator_checks.check_dont_overwrite_parameters("Changing", Changing(Layers, epochs=1))


def test_a_fit_gives_the_bits_of_a_model() -> None:
    x, y = images(), labels()
    estimator = plain(learning_rate=0.01).fit(x, y)
    seed = int(np.random.RandomState(0).randint(np.iinfo(np.int32).max))
    model = resfit.Model(PlainNet(3, rngs=nnx.Rngs(seed)))
    model.compile("adamw", learning_rate=0.01, seed=seed)
    history = model.fit(x, y, batch_size=8, epochs=2, verbose=0)
    assert estimator.history_.history == history.history
    expected = model.predict(x, verbose=0, outputs="probabilities")
    np.testing.assert_array_equal(estimator.predict_proba(x), expected)
    np.testing.assert_array_equal(estimator.predict(x), expected.argmax(axis=1))
    assert estimator.score(x, y) == model.evaluate(x, y, verbose=0)[1]


def test_rows_with_an_image_shape_equal_images() -> None:
    x, y = images(), labels()
    by_images, by_rows = plain().fit(x, y), plain(image_shape=(8, 8, 1)).fit(x.reshape(20, -1), y)
    expected = by_images.predict_proba(x)
    for estimator in (by_images, by_rows):
        assert (estimator.n_features_in_, estimator.input_shape_) == (64, (8, 8, 1))
        for given in (x, x.reshape(20, -1), x.tolist(), x.astype(np.float64)):
            np.testing.assert_array_equal(estimator.predict_proba(given), expected)


def test_bytes_are_scaled_as_in_a_model() -> None:
    x, y = np.random.default_rng(0).integers(0, 256, size=(20, 8, 8, 1), dtype=np.uint8), labels()
    as_bytes = plain().fit(x, y).predict_proba(x)
    scaled = (x / 255).astype(np.float32)
    np.testing.assert_allclose(as_bytes, plain().fit(scaled, y).predict_proba(scaled), atol=1e-5)
    assert np.abs(as_bytes - plain().fit(x.astype(np.float32), y).predict_proba(x.astype(np.float32))).max() > 0.1


@pytest.mark.parametrize("names", [["b", "a", "c"], [7, -1, 3], [False, True]], ids=["strings", "numbers", "booleans"])
def test_labels_of_any_kind_come_back_sorted(names: list[Any]) -> None:
    x, y = images(), np.array(names)[labels(classes=len(names))]
    estimator = Classifier(functools.partial(PlainNet, len(names)), epochs=1, random_state=0).fit(x, y)
    assert estimator.classes_.tolist() == sorted(names)
    assert estimator.model_.class_names == [str(name) for name in sorted(names)]
    assert set(estimator.predict(x).tolist()) <= set(names)


def test_class_weights_multiply_sample_weights() -> None:
    x, y = images(), np.array(["a", "b", "c"])[labels()]
    weights = np.linspace(0.5, 2, 20)
    both = plain(class_weight={"a": 2, "b": 1, "c": 0.5}).fit(x, y, sample_weight=weights)
    by_hand = weights * np.array([{"a": 2, "b": 1, "c": 0.5}[label] for label in y])
    np.testing.assert_array_equal(both.predict_proba(x), plain().fit(x, y, by_hand).predict_proba(x))
    assert (both.predict_proba(x) != plain().fit(x, y, weights).predict_proba(x)).any()


def test_a_cross_validation_a_grid_search_and_a_pipeline_work() -> None:
    from sklearn.base import clone
    from sklearn.model_selection import GridSearchCV, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y = images(24), labels(24)
    x[:, 0, 0, 0] += 5 * y
    rows = x.reshape(24, -1)
    whole = make_pipeline(StandardScaler(), plain(image_shape=(8, 8, 1)))
    grid = GridSearchCV(whole, {"classifier__learning_rate": [1e-6, 0.03], "classifier__epochs": [8]}, cv=2)
    grid.fit(rows, y)
    assert grid.best_params_ == {"classifier__learning_rate": 0.03, "classifier__epochs": 8}
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(grid)).predict_proba(rows), grid.predict_proba(rows))
    scores = cross_val_score(clone(plain(learning_rate=0.03)), x, y, cv=2)
    assert scores.tolist() == cross_val_score(plain(learning_rate=0.03), x, y, cv=2).tolist()


def test_the_seed_is_that_of_random_state_and_another_one_in_every_fit_without_it() -> None:
    x, y = images(), labels()

    def found(state: Any) -> bytes:
        return plain(random_state=state).fit(x, y).predict_proba(x).tobytes()

    assert found(0) == found(0) == found(np.random.RandomState(0)) != found(1)
    assert found(None) != found(None)


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (functools.partial(resfit.create_model, "resnet20", depths=(1,), widths=(4,)), (8, 8, 3)),
        (functools.partial(PlainNet, classes=3), (8, 8, 1)),
        (lambda seed: PlainNet(3, rngs=nnx.Rngs(seed)), (8, 8, 1)),
        (lambda num_classes, input_shape, rngs: nnx.Linear(input_shape[0], num_classes, rngs=rngs), (5,)),
        (functools.partial(nnx.Linear, 5, 3), (5,)),
    ],
    ids=["zoo", "class", "seed", "shape", "positional"],
)
def test_a_function_gets_the_arguments_that_it_has(network: Any, shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).normal(size=(12, *shape))
    estimator = Classifier(network, epochs=1, random_state=0).fit(x, labels(12))
    assert estimator.predict_proba(x).shape == (12, 3)


def test_a_name_makes_the_network_of_create_model(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(
        "resfit.sklearn.create_model",
        lambda name, *, num_classes, in_channels, rngs: (
            asked.append({"name": name, "num_classes": num_classes, "in_channels": in_channels}),
            PlainNet(num_classes, rngs=rngs),
        )[1],
    )
    Classifier("resnet32", epochs=1).fit(images(), labels())
    assert asked == [{"name": "resnet32", "num_classes": 3, "in_channels": 1}]


def test_other_arguments_reach_compile_and_fit() -> None:
    stop = resfit.callbacks.EarlyStopping("loss", patience=0, min_delta=100.0)
    estimator = plain(
        epochs=9, compile_arguments={"metrics": ["cross_entropy"]}, fit_arguments={"callbacks": [stop]}
    ).fit(images(), labels())
    assert sorted(estimator.history_.history) == ["cross_entropy", "loss"]
    assert len(estimator.history_.epoch) == 2


@pytest.mark.parametrize(
    ("act", "error", "message"),
    [
        (lambda x, y: plain().fit(x, np.zeros(20)), errors.LabelError, "one class, 0.0"),
        (lambda x, y: plain(image_shape=(8, 8)).fit(x, y), errors.DataError, r"image_shape=\(8, 8\)"),
        (lambda x, y: plain(image_shape=(8, 8, 3)).fit(x, y), errors.DataError, "192 numbers"),
        (lambda x, y: plain(image_shape=(8, 8, 3)).fit(x.reshape(20, -1), y), errors.DataError, "192 numbers"),
        (lambda x, y: plain(image_shape=(4, 16, 1)).fit(x, y), errors.DataError, "Pass the shape"),
        (lambda x, y: plain().fit(x, y).predict(x.reshape(20, 16, 4, 1)), errors.DataError, "the shape in fit"),
        (lambda x, y: Classifier("resnet20").fit(x.reshape(20, -1), y), errors.RankError, "image_shape="),
        (lambda x, y: Classifier(PlainNet(rngs=nnx.Rngs(0))).fit(x, y), errors.ModuleError, "each fit"),
        (lambda x, y: Classifier("resnet21").fit(x, y), errors.SpecError, "resnet21"),
        (lambda x, y: plain().fit(x, y + 0.5), ValueError, "continuous"),
        (lambda x, y: plain(fit_arguments={"epochs": 3}).fit(x, y), errors.ArgumentError, r"\(epochs="),
        (lambda x, y: plain(compile_arguments={"seed": 3}).fit(x, y), errors.ArgumentError, "random_state="),
        (lambda x, y: plain().predict(x), ValueError, "not fitted"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_mistake_has_an_error_that_names_the_remedy(act: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        act(images(), labels())
