"""Model cards: Markdown with metadata, made from what a model knows. The Hugging Face hub shows them as README.md."""

import dataclasses
import importlib.metadata
import inspect
import json
import math
import platform
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
from flax import nnx

from resfit import preprocess as preprocess_
from resfit._utils.optional_import import load_package
from resfit._utils.suggest import did_you_mean
from resfit._utils.texts import storable
from resfit.callbacks import History
from resfit.errors import ArgumentError
from resfit.nets import ZOO, ResNet, ResNetSpec
from resfit.nets.count import count_multiply_adds, count_params
from resfit.transforms import FolderTransforms, Transforms

INSTALL = "pip install 'resfit[weights]'"
_PACKAGES = ("resfit", "jax", "flax", "optax", "numpy")
_MOST_CLASSES = 20  # listed by name
# Fields of a spec that differ between networks of one name.
_FREE = ("num_classes", "in_channels", "dtype", "param_dtype", "remat", "zero_init_last", "unbiased_variance")


class CardFacts(NamedTuple):
    """The facts about a model that its card shows.

    Attributes:
      module: the network.
      preprocess: the preprocessing inside the step.
      transforms: the transforms of photographs, or None.
      class_names: the names of the classes, or None.
      multi_label: True if every output is an independent label.
      dense: True if the outputs are known to be those of pixels.
      example: shape and dtype of one input, or a pytree of such, or None.
      history: the record of the last fit, or None.
      weights: the kind of the weights that the card describes, "raw" or "ema".
      validated: the kind of the weights that `fit` validated.
    """

    module: nnx.Module
    preprocess: preprocess_.Preprocess | None
    transforms: Transforms | FolderTransforms | None
    class_names: list[str] | None
    multi_label: bool
    dense: bool
    example: Any
    history: History | None
    weights: str
    validated: str

    @property
    def architecture(self) -> str:
        """The name of the network in the zoo, else its class."""
        return network_name(self.module) or type(self.module).__name__

    @property
    def task(self) -> str | None:
        """The task as the hub names it; None if the model is not known to classify."""
        measured = self.history.history if self.history is not None else {}
        known = "accuracy" in measured if measured else isinstance(self.module, ResNet)
        if not known and self.class_names is None:
            return None
        return "image-segmentation" if self.dense else "image-classification"

    def measured(self, prefix: str = "") -> dict[str, Any]:
        """Return the results of the epoch whose weights the model has: those of training, or with "val_"."""
        history = self.history
        if history is None or not history.epoch:
            return {}
        epoch = history.epoch[-1] if history.weights_epoch is None else history.weights_epoch
        return {
            name.removeprefix("val_"): history.history[name][epochs.index(epoch)]
            for name, epochs in history.epochs.items()
            if epoch in epochs and name.startswith("val_") == bool(prefix) and name != "learning_rate"
        }


def network_name(module: nnx.Module) -> str | None:
    """Return the name of the network in the zoo; None if no row has this architecture."""
    if not isinstance(module, ResNet):
        return None
    spec = _fixed(module.spec)
    return next((name for name in ZOO if _fixed(ZOO[name].spec) == spec), None)


def _fixed(spec: ResNetSpec) -> dict[str, Any]:
    return {name: value for name, value in dataclasses.asdict(spec).items() if name not in _FREE}


def make(facts: CardFacts, repo_id: str | None, metadata: Mapping[str, Any]) -> str:
    """Return the card of a model.

    Args:
      facts: of the model.
      repo_id: of the repository that shows the card, "user/name"; None if it is unknown.
      metadata: fields of `huggingface_hub.ModelCardData`, which replace those of the model.

    Raises:
      ArgumentError: for a field that `ModelCardData` does not have, or datasets without a name.
      MissingPackageError: if huggingface_hub is not installed.
    """
    hub = load_package("huggingface_hub", "A model card", INSTALL)
    known = [name for name in inspect.signature(hub.ModelCardData).parameters if name not in ("kwargs", *_INTERNAL)]
    for name, value in metadata.items():
        if name not in known:
            raise ArgumentError(
                f"card got {name}={value!r:.60}. Expected fields of huggingface_hub.ModelCardData, such as license=, "
                f"datasets= and eval_results=.{did_you_mean(name, known)}"
            )
    datasets = metadata.get("datasets")
    if not isinstance(datasets, str | list | tuple | None):
        raise ArgumentError(f"card got datasets={datasets!r:.60}. Expected a name of a dataset, or a list of names.")
    name = repo_id.rpartition("/")[2] if repo_id else facts.architecture
    fields = _metadata(facts, name, dict(metadata), hub)
    data = hub.ModelCardData(**fields)
    text = "\n\n".join(part for part in _body(facts, name, repo_id) if part)
    return str(hub.ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}\n"))


_INTERNAL = ("ignore_metadata_errors",)


def _metadata(facts: CardFacts, name: str, given: dict[str, Any], hub: Any) -> dict[str, Any]:
    results = {
        metric: float(value)
        for metric, value in facts.measured("val_").items()
        if metric != "loss" and isinstance(value, int | float) and math.isfinite(value)
    }
    fields = {
        "library_name": "resfit",
        "pipeline_tag": facts.task,
        "tags": ["resfit", "jax", "flax", *(["resnet"] if isinstance(facts.module, ResNet) else [])],
        "metrics": list(results) or None,
        "model_name": name,
    } | given
    datasets = fields.get("datasets")
    dataset = datasets if isinstance(datasets, str) else next(iter(datasets or ()), None)
    # Results belong to weights, a task and a dataset. Without one of them they are in the text only.
    if "eval_results" not in given and dataset and fields["pipeline_tag"] and facts.weights == facts.validated:
        fields["eval_results"] = [
            hub.EvalResult(
                task_type=fields["pipeline_tag"], dataset_type=dataset, dataset_name=dataset,
                dataset_split="validation", metric_type=metric, metric_value=value,
            )
            for metric, value in results.items()
        ] or None  # fmt: skip
    if not fields.get("eval_results"):
        del fields["model_name"]  # the name of the results
    return fields


def _body(facts: CardFacts, name: str, repo_id: str | None) -> Iterable[str]:
    """Yield the parts of the text; empty ones are left out."""
    yield f"# {name}"
    yield (
        f"A {facts.architecture} of {count_params(facts.module):,} parameters"
        + (f" for {facts.task.replace('-', ' ')}" if facts.task else "")
        + ". It is a model of resfit, a library for residual networks on JAX."
    )
    yield "## Use"
    yield _use(facts, repo_id or "user/name")
    yield "## Network"
    yield _table(("", "value"), _network(facts))
    if isinstance(facts.module, ResNet):
        fields = (f"  {json.dumps(field)}: {json.dumps(value)}" for field, value in facts.module.spec.to_dict().items())
        yield "Its `ResNetSpec`:\n\n```json\n{\n" + ",\n".join(fields) + "\n}\n```"
    yield from _classes(facts.class_names)
    yield from _training(facts)
    yield "## Versions"
    versions = {package: importlib.metadata.version(package) for package in _PACKAGES}
    yield _table(("package", "version"), [*versions.items(), ("Python", platform.python_version())])


def _use(facts: CardFacts, repo_id: str) -> str:
    arguments = [repr(repo_id)]
    if not isinstance(facts.module, ResNet):
        arguments.append(f"module={type(facts.module).__name__}(...)")
    if (preprocess_.to_config(facts.preprocess) or {}).get("kind") == "custom":
        arguments.append("preprocess=...")
    call = 'predict(images, outputs="probabilities")' if facts.task else "predict(images)"
    images = ""
    if facts.transforms is not None and facts.task == "image-classification":
        call = 'predict_images("photo.jpg", top=3)  # [(name, probability), ...]'
    elif facts.transforms is not None:
        images = 'images = model.transforms.batch(["photo.jpg"])\n'
    return (
        f"```python\nimport resfit  # {INSTALL}\n\nmodel = resfit.from_hub({', '.join(arguments)})\n{images}"
        f"predictions = model.{call}\n```"
    )


def _network(facts: CardFacts) -> Iterable[tuple[str, Any]]:
    module, example = facts.module, facts.example
    yield "architecture", facts.architecture
    yield "parameters", f"{count_params(module):,}"
    for where, leaf in jax.tree_util.tree_flatten_with_path(example)[0]:
        size = " × ".join(map(str, leaf.shape))
        yield f"input {jax.tree_util.keystr(where)}".strip(), f"{leaf.dtype}, {size}"
    if isinstance(module, ResNet):
        if hasattr(example, "shape"):
            yield "multiply-adds of an input", f"{count_multiply_adds(module, example.shape):,}"
        yield "outputs", f"{module.spec.num_classes}{', independent labels' if facts.multi_label else ''}"
    yield "preprocessing in the model", facts.preprocess
    if facts.transforms is not None:
        yield "transforms of photographs", facts.transforms
    yield "weights", {"raw": "as trained", "ema": "averages of the trained weights"}[facts.weights]


def _classes(names: list[str] | None) -> Iterable[str]:
    if names is None:
        return
    yield "## Classes"
    yield _table(("number", "name"), enumerate(names[:_MOST_CLASSES]))
    if len(names) > _MOST_CLASSES:
        yield f"The other {len(names) - _MOST_CLASSES} names are in `model.class_names`."


def _training(facts: CardFacts) -> Iterable[str]:
    """Yield settings and results of the last fit."""
    history = facts.history
    if history is None or not history.epoch:
        return
    yield "## Training"
    settings = history.settings | {"epochs": history.epoch[-1] + 1}
    rows = [(label, settings[name]) for name, label in _SETTINGS.items() if settings.get(name) is not None]
    yield _table(("setting", "value"), rows)
    last = history.epoch[-1] if history.weights_epoch is None else history.weights_epoch
    of_averages = "averages" if facts.validated == "ema" else "weights as trained"
    yield "## Results"
    yield f"After epoch {last + 1}, in training and in validation, which measured the {of_averages}:"
    train, validation = facts.measured(), facts.measured("val_")
    names = dict.fromkeys([*train, *validation])
    results = [(name, _number(train.get(name, "")), _number(validation.get(name, ""))) for name in names]
    yield _table(("metric", "training", "validation"), results)


_SETTINGS = {
    "examples": "training examples",
    "epochs": "epochs",
    "batch_size": "batch size",
    "optimizer": "optimizer",
    "learning_rate": "learning rate",
    "loss": "loss",
    "augment": "augmentation",
    "ema": "decay of the averages",
    "precision": "precision",
    "gradient_accumulation_steps": "slices of a batch",
    "batch_norm": "BatchNorm over",
    "seed": "seed",
}


def _number(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _table(head: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> str:
    """Return a table of Markdown; names of classes can contain any characters."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(value: Any) -> str:
    text = storable(" ".join(str(value).split())).replace("\\", "\\\\")
    for special in "|`<*_":
        text = text.replace(special, f"\\{special}")
    return text
