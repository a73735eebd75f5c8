"""`Classifier`: a network as an estimator of scikit-learn, for `GridSearchCV`, pipelines and the like.

Needs `resfit[sklearn]`.
"""

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import numpy as np
from flax import nnx

from resfit._utils.checks import is_int
from resfit._utils.keywords import only_others
from resfit._utils.optional_import import load_package
from resfit.errors import DataError, LabelError, ModuleError, RankError
from resfit.model import Model
from resfit.weights.pretrained import create_model

load_package("sklearn", "resfit.sklearn", "pip install 'resfit[sklearn]'")

from sklearn.base import BaseEstimator, ClassifierMixin  # noqa: E402
from sklearn.utils import check_random_state, compute_sample_weight  # noqa: E402
from sklearn.utils.multiclass import check_classification_targets  # noqa: E402
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data  # noqa: E402

__all__ = ["Classifier"]

# The arguments of Model.compile and Model.fit that Classifier sets, with its own argument for each.
_OF_COMPILE = {"optimizer": "optimizer", "learning_rate": "learning_rate", "seed": "random_state"}
_OF_FIT = {"batch_size": "batch_size", "epochs": "epochs", "class_weight": "class_weight"}


class Classifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A classifier of scikit-learn that trains a fresh network in every `fit`.

    `X` is images, (examples, height, width, channels), or rows, (examples, features), of which `image_shape` makes
    images. Without `image_shape` the network receives the rows. uint8 values stay, and resfit scales them to [0, 1];
    everything else becomes float32.

    Args:
      network: the name of a network of `resfit.list_models()`, or a function that returns a new `nnx.Module`. The
        function is called with those of these keyword arguments that are among its parameters: `num_classes`,
        `in_channels` (the last axis of an example), `input_shape` (of an example), `seed`, and `rngs` (an `nnx.Rngs`).
      epochs: passes over the training data; 10 by default.
      batch_size: examples in a step; 32 by default.
      optimizer: as in `resfit.Model.compile`; "adamw" by default.
      learning_rate: as in `resfit.Model.compile`; by default that of the optimizer.
      image_shape: (height, width, channels) of the images in the rows of `X`; None (default) to pass rows on.
      class_weight: label -> weight of its examples in the loss; "balanced" for weights in inverse proportion to the
        number of examples; None (default) for equal weights.
      random_state: an integer for the initial values, the order of the data, and everything random in the steps; a
        `numpy.random.RandomState`; or None (default) for another seed in every `fit`.
      compile_arguments: other arguments of `resfit.Model.compile` by name, such as `{"augment": "cifar"}`.
      fit_arguments: other arguments of `resfit.Model.fit` by name, such as `{"callbacks": [...]}`.

    Attributes:
      classes_: the labels, sorted; columns of `predict_proba` have this order.
      n_features_in_: numbers in an example.
      feature_names_in_: the names of the columns, if `X` is a DataFrame.
      input_shape_: the shape of an example as the network receives it.
      model_: the trained `resfit.Model`.
      history_: the `History` of the training.

    Source: the conventions of scikit-learn, "Developing scikit-learn estimators".

    Example:
      >>> from functools import partial
      >>> import resfit
      >>> from sklearn.model_selection import cross_val_score
      >>> (x, y), _ = resfit.data.load("digits")
      >>> thin = partial(resfit.create_model, "resnet20", depths=(1,), widths=(8,))
      >>> classifier = Classifier(thin, epochs=1, batch_size=64, learning_rate=0.01, random_state=0)
      >>> cross_val_score(classifier, x[:200], y[:200], cv=2).shape
      (2,)
    """

    def __init__(
        self,
        network: str | Callable[..., nnx.Module],
        *,
        epochs: int = 10,
        batch_size: int = 32,
        optimizer: Any = "adamw",
        learning_rate: Any = None,
        image_shape: Sequence[int] | None = None,
        class_weight: Mapping[Any, float] | str | None = None,
        random_state: Any = None,
        compile_arguments: Mapping[str, Any] | None = None,
        fit_arguments: Mapping[str, Any] | None = None,
    ) -> None:
        # scikit-learn copies an estimator by these attributes: they have to be the arguments themselves.
        self.network = network
        self.epochs = epochs
        self.batch_size = batch_size
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.image_shape = image_shape
        self.class_weight = class_weight
        self.random_state = random_state
        self.compile_arguments = compile_arguments
        self.fit_arguments = fit_arguments

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train a new network.

        Args:
          X: (examples, height, width, channels) or (examples, features); arrays, lists or a DataFrame, not sparse.
          y: (examples,) labels of two or more classes: numbers or strings.
          sample_weight: (examples,) weights in the loss.

        Raises:
          DataError: if the examples do not have the shape of `image_shape`.
          RankError: if the network takes images and `X` has rows.
          LabelError: if all examples have one class.
          ArgumentError: if `compile_arguments` or `fit_arguments` has an argument that the classifier has too.
          ModuleError: if `network` makes no module.
          ValueError: of scikit-learn, for data that no estimator accepts.
        """
        x, y, self.input_shape_ = self._training_data(X, y)
        weights = None
        if sample_weight is not None or self.class_weight is not None:
            weights = _check_sample_weight(sample_weight, x) * compute_sample_weight(self.class_weight, y)
        self.classes_, numbers = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise LabelError(
                f"Got labels of one class, {self.classes_.tolist()[0]!r}. Expected two or more classes. Pass examples "
                "of each class; in a cross-validation, StratifiedKFold puts each class into each part."
            )
        only_others("Classifier", "compile_arguments", self.compile_arguments or {}, _OF_COMPILE)
        only_others("Classifier", "fit_arguments", self.fit_arguments or {}, _OF_FIT)
        seed = int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max))
        model = Model(self._network(seed))
        model.compile(self.optimizer, learning_rate=self.learning_rate, seed=seed, **(self.compile_arguments or {}))
        model.class_names = [str(label) for label in self.classes_]
        arguments = {"verbose": 0} | dict(self.fit_arguments or {})
        sizes: dict[str, Any] = {"batch_size": self.batch_size, "epochs": self.epochs, "sample_weight": weights}
        try:
            self.history_ = model.fit(x, numbers, **sizes, **arguments)
        except RankError as error:
            if len(self.input_shape_) > 1:
                raise
            raise RankError(
                f"The network takes images, and X has rows, {np.shape(x)}. Expected images (examples, height, width, "
                "channels), or the shape of the images in the rows. Pass image_shape=(height, width, channels)."
            ) from error
        self.model_ = model
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the probability of each class, (examples, classes) float32, in the order of `classes_`.

        Args:
          X: as in `fit`.

        Raises:
          NotFittedError: of scikit-learn, before `fit`.
          DataError: if the examples have another shape than those of `fit`.
        """
        return self._predicted(X, "probabilities")

    def predict(self, X: Any) -> np.ndarray:
        """Return the most probable label of each example, (examples,); the arguments are those of `predict_proba`."""
        numbers = self._predicted(X, "labels")
        labels: np.ndarray = self.classes_[numbers]
        return labels

    def _predicted(self, X: Any, outputs: str) -> np.ndarray:
        check_is_fitted(self, "model_")
        rows, shape = _as_rows(X)
        if shape not in (None, self.input_shape_):
            raise DataError(f"Got examples of shape {shape}. Expected the shape in fit, {self.input_shape_}.")
        x = validate_data(self, rows, dtype=_DTYPES, reset=False).reshape(-1, *self.input_shape_)
        found: np.ndarray = self.model_.predict(x, batch_size=self.batch_size, verbose=0, outputs=outputs)
        return found

    def _training_data(self, X: Any, y: Any) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
        """Return the inputs of the network, the labels, and the shape of an example."""
        rows, shape = _as_rows(X)
        x, y = validate_data(self, rows, y, dtype=_DTYPES)
        check_classification_targets(y)
        wanted = self.image_shape
        if wanted is None:
            wanted = shape or x.shape[1:]
        elif len(wanted) != 3 or not all(is_int(size, least=1) for size in wanted):
            raise DataError(f"Got image_shape={wanted!r}. Expected three integers: (height, width, channels).")
        wanted = tuple(wanted)
        if shape not in (None, wanted) or math.prod(wanted) != x.shape[1]:
            raise DataError(
                f"Got image_shape={wanted}, of {math.prod(wanted)} numbers, and examples of shape "
                f"{shape or x.shape[1:]}. Expected rows of {math.prod(wanted)} features, or images of this shape. Pass "
                "the shape (height, width, channels) of the images in X."
            )
        return x.reshape(-1, *wanted), y, wanted

    def _network(self, seed: int) -> nnx.Module:
        make: Any = self.network
        if isinstance(make, str):
            make = functools.partial(create_model, make)
        if not callable(make) or isinstance(make, nnx.Module | Model):
            raise ModuleError(
                f"network is an object of {type(make).__name__}. Expected the name of a network, or a function that "
                "returns a new module for each fit, such as lambda seed: MyNet(rngs=nnx.Rngs(seed))."
            )
        offered = {
            "num_classes": len(self.classes_),
            "in_channels": self.input_shape_[-1],
            "input_shape": self.input_shape_,
            "seed": seed,
            "rngs": nnx.Rngs(seed),
        }
        taken = _parameters(make)
        module: nnx.Module = make(**{name: value for name, value in offered.items() if name in taken})
        return module


_DTYPES = [np.float32, np.uint8]  # the first one for every other dtype


def _as_rows(X: Any) -> tuple[Any, tuple[int, ...] | None]:
    """Return what scikit-learn can check, and the shape of an example with several axes; None for rows."""
    images = X if hasattr(X, "ndim") else np.asarray(X)
    if images.ndim <= 2:
        return X, None
    return np.asarray(images).reshape(-1, math.prod(images.shape[1:])), images.shape[1:]


def _parameters(make: Any) -> list[str]:
    """Return the names of the parameters of a function that have no argument yet."""
    if isinstance(make, functools.partial):
        return [name for name in _parameters(make.func)[len(make.args) :] if name not in make.keywords]
    if inspect.isclass(make):  # the metaclass of nnx.Module hides the parameters of the class
        return list(inspect.signature(make.__init__).parameters)[1:]
    return list(inspect.signature(make).parameters)
