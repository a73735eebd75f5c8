"""`HubModel`: the methods of a model that describe it and exchange it with the Hugging Face hub."""

import importlib.metadata
import json
import tempfile
from pathlib import Path
from typing import Any, Self

import jax
from flax import nnx

from resfit import preprocess as preprocess_
from resfit._utils.keywords import checked
from resfit.errors import ArgumentError
from resfit.export import model_card, repository
from resfit.export.model_files import ModelFiles
from resfit.nets import ResNet


class HubModel(ModelFiles):
    """Writes model cards, and exchanges models with the Hugging Face hub."""

    def card(self, repo_id: str | None = None, *, weights: str = "raw", **metadata: Any) -> str:
        """Return a model card: Markdown with metadata, made from what the model knows. Needs `resfit[weights]`.

        The card describes the network, preprocessing, transforms, classes, the settings and results of the last `fit`,
        and the versions of the packages. Results are those of the epoch whose weights the model has since that `fit`;
        if you set other weights after it, pass `eval_results`. The metadata hold validation results if `datasets` names
        the dataset.

        Args:
          repo_id: of the repository that will show the card, "user/name".
          weights: "raw" or "ema", as in `save`.
          **metadata: fields of `huggingface_hub.ModelCardData`, such as license="apache-2.0" and
            datasets=["fashion_mnist"]. They replace those of the model.

        Raises:
          ArgumentError: for another field, or a value of another type.
          MissingPackageError: if huggingface_hub is not installed.

        Example:
          >>> import resfit
          >>> model = resfit.Model(resfit.create_model("resnet20", num_classes=10))
          >>> model.card("user/name", license="mit").splitlines()[1:4]
          ['library_name: resfit', 'license: mit', 'pipeline_tag: image-classification']
        """
        if not isinstance(repo_id, str | None):
            raise ArgumentError(f"card got repo_id={repo_id!r:.60}. Expected 'user/name', or None if it is unknown.")
        inputs, labels = self._learned.inputs, self._learned.labels
        facts = model_card.CardFacts(
            self._context.state.module_with(weights), inputs.preprocess, inputs.transforms, labels.names,
            bool(labels.multi_label), labels.of_pixels, inputs.example, self.history, weights, self.validation_weights,
        )  # fmt: skip
        return model_card.make(facts, repo_id, metadata)

    @checked("arguments")
    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str = "Upload model with resfit",
        private: bool | None = None,
        token: str | None = None,
        revision: str | None = None,
        weights: str = "raw",
        card: str | None = None,
    ) -> str | None:
        """Upload the model to a repository of the Hugging Face hub; `resfit.from_hub` reads it.

        Needs `resfit[weights]`. One commit replaces model.safetensors, the file of `save`; README.md, the model card;
        and config.json, which names the network. Other files of the repository stay. If several processes train
        together, the first one uploads.

        Args:
          repo_id: "user/name"; the repository is created if it does not exist.
          commit_message: of the commit.
          private: True for a repository that only you can read; None for the default of the account. An existing
            repository stays as it is.
          token: of the hub; by default that of `hf auth login` or of the environment variable HF_TOKEN.
          revision: an existing branch; by default "main".
          weights: "raw", as trained; "ema", averaged (see `compile`).
          card: the model card; by default `model.card(repo_id)`. Pass `model.card(repo_id, license=...)` to add to it.

        Returns:
          The URL of the commit; None in the other processes of a run.

        Raises:
          HubError: without a token, for an unknown revision, and if the hub refuses or cannot be reached.
          MissingPackageError: if huggingface_hub is not installed.
        """
        text = self.card(repo_id, weights=weights) if card is None else card
        module = self.module
        config = {
            "library_name": "resfit",
            "library_version": importlib.metadata.version("resfit"),
            "architecture": model_card.network_name(module) or type(module).__name__,
            "spec": module.spec.to_dict() if isinstance(module, ResNet) else None,
        }
        with tempfile.TemporaryDirectory(prefix="resfit-") as name:
            folder = Path(name)
            self.save(folder / repository.MODEL, weights=weights)
            if jax.process_index() != 0:
                return None
            (folder / repository.CARD).write_text(text, encoding="utf-8")
            (folder / repository.CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")
            return repository.push(
                folder, repo_id, commit_message=commit_message, private=private, token=token, revision=revision
            )

    @classmethod
    @checked("arguments")
    def from_hub(
        cls,
        repo_id: str,
        module: nnx.Module | None = None,
        preprocess: preprocess_.Preprocess | None = None,
        *,
        token: str | None = None,
        revision: str | None = None,
    ) -> Self:
        """Read a model of `push_to_hub`; also as `resfit.from_hub`. Needs `resfit[weights]`.

        huggingface_hub keeps downloaded files in its cache, which is enough without a network. Loading executes no code
        of the repository.

        Args:
          repo_id: "user/name".
          module: as in `load`, if the network is not one of resfit's.
          preprocess: as in `load`.
          token: of the hub, for a private repository; by default that of `hf auth login` or of HF_TOKEN.
          revision: a branch, a tag or a commit; by default "main".

        Returns:
          A model that can predict without `compile`, as that of `load`.

        Raises:
          HubError: if there is no such repository or revision, or neither a network nor a cached file.
          SavedModelError: if the repository holds no model of resfit, or one that needs an argument.
          WeightsError: if the cached file is damaged.
          MissingPackageError: if huggingface_hub is not installed.
        """
        return cls.load(repository.pull(repo_id, token=token, revision=revision), module, preprocess)
