"""Location of weights files by published name: in a local cache, else by download."""

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
    """Return the local path of a weights file; download the file if it is not cached.

    Args:
        weights: `"torchvision/IMAGENET1K_V2"`; `"timm/..."` or `"microsoft/..."`, a repository of the Hugging Face
            hub with an optional `@revision`; or a path.
        network: the network of the weights, a name in the zoo; names of torchvision do not contain it.

    Raises:
        WeightsError: if `weights` is neither a name nor a path, torchvision has no such weights for the network, or the
            cached file is damaged.
        DownloadError: if the file is not cached and cannot be downloaded, or differs from the published file.
        MissingPackageError: for a repository of the hub, if huggingface_hub is not installed.
        FileNotFoundError: if the path does not exist.
    """
    if not isinstance(weights, str | os.PathLike):
        raise WeightsError(f"create_model got weights={weights!r}. {_expected(network)}")
    text = expand_user(weights)
    if isinstance(weights, str) and not Path(text).exists():
        owner, _, name = text.partition("/")
        if owner == "torchvision":
            return _of_torchvision(name, network)
        if owner in HUB_OWNERS and name.count("/") == 0:
            return _of_hub(text)
    path = Path(text)
    if not path.is_file():
        raise FileNotFoundError(f"Received weights={text!r}, but there is no such file. {_expected(network)}")
    return path


def _expected(network: str) -> str:
    """Return the sentences that list the weights of a network."""
    known = [f"torchvision/{version}" for version in TORCHVISION.get(network, {})]
    listed = f"one of {known}, " if known else ""
    return (
        f"Expected for {network!r} {listed}a repository of the Hugging Face hub, one of "
        f"{[f'{owner}/...' for owner in HUB_OWNERS]}, such as 'timm/resnet50.a1_in1k', or the path of a file. None "
        "gives initial values."
    )


def _of_torchvision(version: str, network: str) -> Path:
    versions = TORCHVISION.get(network, {})
    if version not in versions:
        raise WeightsError(
            f"torchvision has no weights {version!r} for {network!r}.{did_you_mean(version, list(versions))} Expected "
            f"one of {list(versions)}. torchvision has weights for {list(TORCHVISION)}."
        )
    remote = versions[version]
    cached = cache_folder() / "weights" / remote.name
    if not cached.is_file():
        fetch(remote, cached)
    elif not is_published(_checksum(cached), remote):
        raise _damaged(cached, remote.sha256 + "...")
    return cached


def _of_hub(text: str) -> Path:
    """Return the path of a repository's weights file; a file in the hub's cache needs no network access."""
    repository, _, revision = text.partition("@")
    hub = load_package("huggingface_hub", f"weights={text!r}", _INSTALL)
    errors = load_package("huggingface_hub.errors", f"weights={text!r}", _INSTALL)
    for name in HUB_FILES:
        found = hub.try_to_load_from_cache(repository, name, revision=revision or None)
        if isinstance(found, str):
            return undamaged(Path(found))
    try:
        return undamaged(Path(_downloaded(hub, errors, repository, revision or None)))
    except (OSError, ValueError) as error:  # the base classes of all errors of the hub
        if isinstance(error, DownloadError | WeightsError):
            raise
        raise DownloadError(
            f"weights={text!r} is not in the cache of huggingface_hub ({hub.constants.HF_HUB_CACHE}), and could not "
            f"be downloaded: {type(error).__name__}: {error}. Expected an existing repository and a network that "
            f"reaches {hub.constants.ENDPOINT}. Without a network, copy the file to this machine and pass its path as "
            "weights=."
        ) from error


def _downloaded(hub: Any, errors: Any, repository: str, revision: str | None) -> str:
    """Download the config of a network and then its weights; return the path of the weights."""

    def download(name: str) -> str | None:
        try:
            return str(hub.hf_hub_download(repository, name, revision=revision))
        except errors.LocalEntryNotFoundError:  # no network connection, which is not a missing file
            raise
        except errors.EntryNotFoundError:
            return None

    download(CONFIG)
    better, other = HUB_FILES
    return download(better) or str(hub.hf_hub_download(repository, other, revision=revision))


def undamaged(path: Path) -> Path:
    """Return the path of a file in the hub's cache, which names large files by their SHA-256.

    Raises:
        WeightsError: if the file is damaged.
    """
    named = path.resolve().name
    if re.fullmatch("[0-9a-f]{64}", named) and _checksum(path) != named:
        raise _damaged(path, named)
    return path


def _damaged(path: Path, expected: str) -> WeightsError:
    return WeightsError(
        f"{path} is damaged: its SHA-256 is {_checksum(path)}. Expected {expected}. Delete {path.resolve()} to "
        "download it again."
    )


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
