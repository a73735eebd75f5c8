"""Repositories of models on the Hugging Face hub, through huggingface_hub."""

import contextlib
import importlib.metadata
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from resfit._utils.optional_import import load_package
from resfit.errors import HubError, ResfitError, SavedModelError
from resfit.export.model_card import INSTALL
from resfit.weights.hub import undamaged

MODEL, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
_LIBRARY = {"library_name": "resfit", "library_version": importlib.metadata.version("resfit")}


def push(
    folder: Path, repo_id: str, *, commit_message: str, private: bool | None, token: str | None, revision: str | None
) -> str:
    """Upload a folder as one commit, and create the repository if it does not exist.

    Returns:
      The URL of the commit.

    Raises:
      HubError: without a token, and if the hub refuses or cannot be reached.
    """
    hub = load_package("huggingface_hub", "push_to_hub", INSTALL)
    with _explained("push_to_hub", repo_id, revision):
        if token is None and hub.get_token() is None:
            raise HubError(
                f"push_to_hub got {repo_id!r} and found no token of the Hugging Face hub. Expected a token that may "
                "write. Log in with the command `hf auth login`, set the environment variable HF_TOKEN, or pass token=."
            )
        api = hub.HfApi(token=token, **_LIBRARY)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        commit = api.upload_folder(
            repo_id=repo_id, folder_path=folder, commit_message=commit_message, revision=revision
        )
        return str(commit.commit_url)


def pull(repo_id: str, *, token: str | None, revision: str | None) -> Path:
    """Return the path of the model file of a repository; download it unless it is in the cache of huggingface_hub.

    Raises:
      HubError: if there is no such repository or revision, or neither a network nor a cached file.
      SavedModelError: if the repository has another content than a model of resfit.
      WeightsError: if the cached file is damaged.
    """
    hub = load_package("huggingface_hub", "from_hub", INSTALL)
    with _explained("from_hub", repo_id, revision):
        # The file of a few bytes first: a repository of something else can be large.
        known = Path(hub.snapshot_download(repo_id, revision=revision, token=token, allow_patterns=CONFIG, **_LIBRARY))
        _check_is_of_resfit(hub, known, repo_id)
        whole = hub.snapshot_download(repo_id, revision=known.name, token=token, allow_patterns=MODEL, **_LIBRARY)
        return undamaged(Path(whole) / MODEL)


def _check_is_of_resfit(hub: Any, folder: Path, repo_id: str) -> None:
    """Raise unless the config of a snapshot names resfit."""
    files = [file.path for file in hub.get_cached_repo_tree(repo_id, revision=folder.name)]
    config = None
    if CONFIG in files:
        with contextlib.suppress(ValueError):  # of invalid JSON or UTF-8, which resfit never writes
            config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    if isinstance(config, dict) and config.get("library_name") == "resfit" and MODEL in files:
        return
    described = {name: config[name] for name in _DESCRIBING if name in config} if isinstance(config, dict) else None
    raise SavedModelError(
        f"from_hub got {repo_id!r}, which holds no model of resfit: its files are {files[:20]}, and its {CONFIG} says "
        f"{described}. Expected a repository of Model.push_to_hub, with {MODEL} and a {CONFIG} that names resfit. For "
        f"weights of timm: resfit.create_model(name, weights={repo_id!r})."
    )


_DESCRIBING = ("library_name", "architecture", "architectures", "model_type")


@contextlib.contextmanager
def _explained(call: str, repo_id: str, revision: str | None) -> Iterator[None]:
    """Raise the errors of huggingface_hub as `HubError`, with a remedy."""
    errors = load_package("huggingface_hub.errors", call, INSTALL)
    try:
        yield
    # The base classes of the errors of huggingface_hub and of its HTTP client; a RuntimeError is that of an upload.
    except (OSError, ValueError, RuntimeError, errors.HTTPError) as error:
        if isinstance(error, ResfitError):
            raise
        if isinstance(error, errors.HFValidationError):
            raise HubError(
                f"{call} got {repo_id!r}, which cannot be the name of a repository. Expected 'user/name' of letters, "
                "digits, '-', '_' and '.'."
            ) from error
        if isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):
            error = error.__cause__
        said = " ".join((getattr(error, "server_message", None) or str(error)).split())[:300]
        at = "" if revision is None else f", revision={revision!r}"
        raise HubError(
            f"{call} got {repo_id!r}{at}: {type(error).__name__}: {said} {_remedy(errors, error, repo_id, call)}"
        ) from error


def _remedy(errors: Any, error: Exception, repo_id: str, call: str) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.RevisionNotFoundError):
        return (
            "Expected a branch, a tag or a commit of the repository. To make a branch: "
            f"huggingface_hub.create_branch({repo_id!r}, branch=...)."
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            "Expected an existing repository that the token may read. Check the spelling. For a private one log in "
            "with `hf auth login`, or pass token=."
        )
    if status in (401, 403):
        return "Expected a token that may write to this repository. Log in again with `hf auth login`, or pass token=."
    if "Invalid metadata" in str(error):
        return "Expected a card with valid metadata. Correct the arguments of model.card()."
    endpoint = load_package("huggingface_hub.constants", call, INSTALL).ENDPOINT
    return (
        f"Expected a network that reaches {endpoint}, or a cached copy, and no HF_HUB_OFFLINE=1. Without a network use "
        "model.save(path) and resfit.load(path)."
    )
