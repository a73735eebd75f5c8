"""Finds a file of weights by its published name: on this machine, or else at its source, once."""

import hashlib
import os
import re
from pathlib import Path
from typing import Any

from resfit._utils.download import fetch, is_published
from resfit._utils.optional_import import load_package
from resfit._utils.paths import cache_folder, expand_user
from resfit._utils.suggest import did_you_mean
from resfit.errors import DownloadError, WeightsError
from resfit.weights.architecture import CONFIG, HUB_FILES
from resfit.weights.published import TORCHVISION

HUB_OWNERS = ("timm", "microsoft")
_INSTALL = "pip install 'resfit[weights]'"


def locate(weights: str | os.PathLike[str], network: str) -> Path:
    """The file with some weights, on this machine; downloaded if it has to be.

    Args:
        weights: `"torchvision/IMAGENET1K_V2"`; `"timm/..."` or `"microsoft/..."`, a repository of the Hugging Face
            hub, with `@revision` behind it or not; or a path.
        network: whose weights, a name in the zoo; torchvision has one name for the weights of all.

    Raises:
        WeightsError: if torchvision has no such weights for the network, or the file on this machine is damaged.
        DownloadError: if the file is not here and cannot be downloaded, or is not the published one.
        MissingPackageError: for a repository of the hub, without huggingface_hub.
        FileNotFoundError: if there is no such file.
    """
    text = expand_user(weights)
    if isinstance(weights, str) and not Path(text).exists():
        owner, _, name = text.partition("/")
        if owner == "torchvision":
            return _of_torchvision(name, network)
        if owner in HUB_OWNERS and name.count("/") == 0:
            return _of_hub(text)
    path = Path(text)
    if not path.is_file():
        raise FileNotFoundError(
            f"Received weights={text!r}, and there is no such file. Expected a path, 'torchvision/IMAGENET1K_V1' and "
            f"its like, or a repository of the Hugging Face hub, one of {[f'{owner}/...' for owner in HUB_OWNERS]}."
        )
    return path


def _of_torchvision(version: str, network: str) -> Path:
    versions = TORCHVISION.get(network, {})
    if version not in versions:
        raise WeightsError(
            f"torchvision has no weights {version!r} for {network!r}. Expected one of {list(versions)} for it; it has "
            f"some for {list(TORCHVISION)}.{did_you_mean(version, list(versions))}"
        )
    remote = versions[version]
    cached = cache_folder() / "weights" / remote.name
    if not cached.is_file():
        fetch(remote, cached)
    elif not is_published(_checksum(cached), remote):
        raise _damaged(cached, remote.sha256 + "...")
    return cached


def _of_hub(text: str) -> Path:
    """A file of a repository. What the hub's own cache holds is taken without asking the network."""
    repository, _, revision = text.partition("@")
    hub = load_package("huggingface_hub", f"weights={text!r}", _INSTALL)
    errors = load_package("huggingface_hub.errors", f"weights={text!r}", _INSTALL)
    for name in HUB_FILES:
        found = hub.try_to_load_from_cache(repository, name, revision=revision or None)
        if isinstance(found, str):
            return _whole(Path(found))
    try:
        return _whole(Path(_downloaded(hub, errors, repository, revision or None)))
    except (OSError, ValueError) as error:  # the hub's errors are one or the other
        if isinstance(error, DownloadError | WeightsError):
            raise
        raise DownloadError(
            f"weights={text!r} is not in the cache of huggingface_hub ({hub.constants.HF_HUB_CACHE}), and could not "
            f"be downloaded: {type(error).__name__}: {error}. Expected such a repository, and a network that reaches "
            f"{hub.constants.ENDPOINT}. Without one, get the file elsewhere, and pass its path as weights=."
        ) from error


def _downloaded(hub: Any, errors: Any, repository: str, revision: str | None) -> str:
    """Download the description of the network and then its weights; return the path of the latter."""

    def download(name: str) -> str | None:
        try:
            return str(hub.hf_hub_download(repository, name, revision=revision))
        except errors.LocalEntryNotFoundError:  # a missing network, and no missing file
            raise
        except errors.EntryNotFoundError:
            return None

    download(CONFIG)
    better, other = HUB_FILES
    return download(better) or str(hub.hf_hub_download(repository, other, revision=revision))


def _whole(path: Path) -> Path:
    """The file, if it is what its cache says: a large one is kept under its SHA-256."""
    named = path.resolve().name
    if re.fullmatch("[0-9a-f]{64}", named) and _checksum(path) != named:
        raise _damaged(path, named)
    return path


def _damaged(path: Path, expected: str) -> WeightsError:
    return WeightsError(
        f"{path} is damaged: its SHA-256 is {_checksum(path)}. Expected {expected}. Delete {path.resolve()}, and it is "
        "downloaded again."
    )


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
