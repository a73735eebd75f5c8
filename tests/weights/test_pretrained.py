"""Published weights by name, from a local hub, a local server and a local cache."""

import hashlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import resfit
from resfit import weights
from resfit._utils import download
from resfit._utils.download import Remote
from resfit.errors import DownloadError, MissingPackageError, SpecError, WeightsError
from resfit.weights import hub, published
from tests.loopback import LoopbackServer, QuietHandler

THIN: dict[str, Any] = {"depths": (1,), "widths": (4,), "stem": "cifar"}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def trained(path: Path, **options: Any) -> Path:
    """Write a weights file of a thin network."""
    weights.save(resfit.create_model("resnet18", rngs=7, **({"num_classes": 5} | THIN | options)), path)
    return path


def kernel(net: Any) -> np.ndarray:
    return np.asarray(net.stage1.blocks[0].branch.conv1.kernel[...])


def head(net: Any) -> np.ndarray:
    return np.asarray(net.head.dense.kernel[...])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return trained(tmp_path / "thin.safetensors")


# --- a path ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [None, 5])
def test_a_path_fills_the_network(file: Path, classes: int | None, caplog: pytest.LogCaptureFixture) -> None:
    net = resfit.create_model("resnet18", num_classes=classes, weights=file, **THIN)
    source = resfit.create_model("resnet18", num_classes=5, rngs=7, **THIN)
    np.testing.assert_array_equal(kernel(net), kernel(source))
    np.testing.assert_array_equal(head(net), head(source))
    assert "keeps its initial values" not in caplog.text


def test_other_classes_keep_the_initial_head_with_a_log_message(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="resfit")
    net = resfit.create_model("resnet18", num_classes=3, weights=str(file), **THIN)
    fresh = resfit.create_model("resnet18", num_classes=3, **THIN)
    np.testing.assert_array_equal(head(net), head(fresh))
    assert (kernel(net) != kernel(fresh)).any()
    assert "thin.safetensors is for 5 classes: the last layer, of 3 classes, keeps its initial values." in caplog.text


@pytest.mark.parametrize(("channels", "done"), [(1, "summed for 1"), (6, "repeated for 6")])
def test_other_channels_adapt_the_first_kernel_with_a_log_message(
    file: Path, channels: int, done: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="resfit")
    net = resfit.create_model("resnet18", in_channels=channels, weights=file, **THIN)
    source = resfit.create_model("resnet18", num_classes=5, rngs=7, **THIN)
    theirs, ours = (np.asarray(made.stem.conv.kernel[...]) for made in (source, net))
    np.testing.assert_allclose(ours.sum(2), theirs.sum(2), rtol=1e-5, atol=1e-6)
    assert f"is for images of 3 channels: its first kernel is {done}." in caplog.text


def test_weights_of_another_network_raise(file: Path) -> None:
    with pytest.raises(WeightsError, match=r"(?s)missing: layer2\.0\.bn1.*\(The file: .*thin\.safetensors\)"):
        resfit.create_model("resnet18", weights=file, **THIN | {"depths": (1, 1), "widths": (4, 8)})


def test_without_weights_the_number_of_classes_is_needed() -> None:
    with pytest.raises(SpecError, match="received no num_classes"):
        resfit.create_model("resnet18")


def test_features_without_a_head_need_a_number_of_classes(file: Path, tmp_path: Path) -> None:
    import safetensors.numpy

    held = {name: value for name, value in weights.read(file).items() if not name.startswith("fc.")}
    safetensors.numpy.save_file(held, tmp_path / "features.safetensors")
    with pytest.raises(SpecError, match="contains no last layer"):
        resfit.create_model("resnet18", weights=tmp_path / "features.safetensors", **THIN)
    resfit.create_model("resnet18", num_classes=2, weights=tmp_path / "features.safetensors", **THIN)


@pytest.mark.parametrize("name", ["missing.pth", "runs/a", "timm/a/b", "somebody/resnet50"])
def test_an_invalid_weights_argument_lists_the_valid_forms(name: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such file.*torchvision/IMAGENET1K_V1.*timm/\.\.\."):
        resfit.create_model("resnet18", weights=name)


def test_an_unknown_network_raises_before_the_download(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resfit.weights.pretrained.locate", None)
    with pytest.raises(SpecError, match="Did you mean 'resnet"):
        resfit.create_model("resnet5O", weights="timm/resnet50.a1_in1k")


# --- a server ------------------------------------------------------------------------------------------------------


class Server(LoopbackServer):
    """A server of files with the headers of the Hugging Face hub."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        outer = self

        class Handler(QuietHandler):
            def do_HEAD(self) -> None:  # noqa: N802
                self.answer(body=False)

            def do_GET(self) -> None:  # noqa: N802
                self.answer(body=True)

            def answer(self, *, body: bool) -> None:
                outer.asked.append(f"{self.command} {self.path}")
                content = outer.files.get(self.path)
                self.send_response(404 if content is None else 200)
                if content is None:
                    self.send_header("X-Error-Code", "EntryNotFound")
                    self.send_header("Content-Length", "0")
                else:
                    self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
                    self.send_header("Content-Length", str(len(content)))
                self.send_header("X-Repo-Commit", COMMIT)
                self.end_headers()
                if body and content is not None:
                    self.wfile.write(content)

        super().__init__(Handler)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    monkeypatch.setattr(download, "_PAUSE", 0.001)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for proxy in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    server = Server()
    yield server
    server.close()


@pytest.fixture
def torchvision(server: Server, monkeypatch: pytest.MonkeyPatch, file: Path) -> Path:
    """Serve a file at torchvision's address; return the path of its cached copy."""
    content = file.read_bytes()
    begin = hashlib.sha256(content).hexdigest()[:8]
    server.files[f"/models/resnet18-{begin}.pth"] = content
    remote = Remote(f"{server.url}/models/resnet18-{begin}.pth", None, begin, "pass its path as weights=")
    monkeypatch.setattr(hub, "TORCHVISION", {"resnet18": {"IMAGENET1K_V1": remote}})
    return file.parent / "cache" / "resfit" / "weights" / remote.name


def test_torchvisions_weights_are_downloaded_once(server: Server, torchvision: Path) -> None:
    for _ in range(2):
        net = resfit.create_model("resnet18", weights="torchvision/IMAGENET1K_V1", **THIN)
        assert net.spec.num_classes == 5
    assert len(server.asked) == 1
    assert list(torchvision.parent.iterdir()) == [torchvision]
    server.close()  # no network from here on
    resfit.create_model("resnet18", weights="torchvision/IMAGENET1K_V1", **THIN)


def test_another_file_at_the_address_raises_and_is_not_kept(server: Server, torchvision: Path) -> None:
    server.files = {path: content + b"?" for path, content in server.files.items()}
    with pytest.raises(
        DownloadError, match=r"Expected the published file: [0-9a-f]{8}\.\.\.\. The download was deleted.*weights="
    ):
        resfit.create_model("resnet18", weights="torchvision/IMAGENET1K_V1", **THIN)
    assert not torchvision.exists()


def test_a_damaged_file_in_the_cache_is_named(server: Server, torchvision: Path) -> None:
    resfit.create_model("resnet18", weights="torchvision/IMAGENET1K_V1", **THIN)
    torchvision.write_bytes(torchvision.read_bytes()[:-1] + b"?")
    with pytest.raises(WeightsError, match=r"is damaged.*Delete .* to download it again"):
        resfit.create_model("resnet18", weights="torchvision/IMAGENET1K_V1", **THIN)


def test_a_failed_download_names_the_file_and_its_place(server: Server, torchvision: Path) -> None:
    server.close()
    with pytest.raises(
        DownloadError, match=rf"failed 3 times.*copy the file to {torchvision}, or pass its path as weights="
    ):
        resfit.create_model("resnet18", weights="torchvision/IMAGENET1K_V1", **THIN)


def test_weights_that_torchvision_does_not_have_raise() -> None:
    with pytest.raises(
        WeightsError,
        match=r"no weights 'IMAGENET1K_V2' for 'resnet18'\. Did you mean 'IMAGENET1K_V1'\? Expected one of",
    ):
        resfit.create_model("resnet18", weights="torchvision/IMAGENET1K_V2")
    with pytest.raises(WeightsError, match=r"for 'resnet20'\. Expected one of \[\]"):
        resfit.create_model("resnet20", weights="torchvision/IMAGENET1K_V1")


def test_the_table_names_networks_of_the_zoo_and_addresses_with_their_checksums() -> None:
    assert set(published.TORCHVISION) <= set(resfit.list_models())
    for name, versions in published.TORCHVISION.items():
        for remote in versions.values():
            assert remote.url == f"https://download.pytorch.org/models/{name}-{remote.sha256}.pth"
            assert len(remote.sha256) == 8


# --- the hub -------------------------------------------------------------------------------------------------------


@pytest.fixture
def cache(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Set up a cache of huggingface_hub that uses the local server."""
    constants = pytest.importorskip("huggingface_hub.constants", reason="needs the package huggingface_hub")
    folder = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    return folder


def in_cache(
    cache: Path, content: bytes, repository: str = "timm--resnet18.thin", name: str = "model.safetensors"
) -> Path:
    """Store a file as huggingface_hub does: the file under its checksum, and a link by its name."""
    folder = cache / f"models--{repository}"
    blob = folder / "blobs" / hashlib.sha256(content).hexdigest()
    for place in (blob.parent, folder / "refs", folder / "snapshots" / COMMIT):
        place.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(content)
    (folder / "refs" / "main").write_text(COMMIT)
    os.symlink(blob, folder / "snapshots" / COMMIT / name)
    return blob


@pytest.mark.representatives("-model.safetensors", "@0123456789abcdef0123456789abcdef01234567-pytorch_model.bin")
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("revision", ["", f"@{COMMIT}"])
def test_cached_files_need_no_network(name: str, revision: str, cache: Path, server: Server, file: Path) -> None:
    in_cache(cache, file.read_bytes(), name=name)
    server.close()
    net = resfit.create_model("resnet18", weights=f"timm/resnet18.thin{revision}", **THIN)
    assert net.spec.num_classes == 5
    assert server.asked == []


def test_a_damaged_file_in_the_hubs_cache_is_named(cache: Path, file: Path) -> None:
    blob = in_cache(cache, file.read_bytes())
    blob.write_bytes(blob.read_bytes()[:-1] + b"?")
    with pytest.raises(WeightsError, match=r"is damaged.*Delete .*blobs/[0-9a-f]{64} to download"):
        resfit.create_model("resnet18", weights="timm/resnet18.thin", **THIN)


@pytest.mark.representatives("timm-model.safetensors", "microsoft-pytorch_model.bin")
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("owner", ["timm", "microsoft"])
def test_a_repository_of_the_hub_is_downloaded_once(
    owner: str, name: str, cache: Path, server: Server, tmp_path: Path
) -> None:
    source = resfit.create_model("resnet18", num_classes=5, rngs=7, **THIN)
    naming = "transformers" if owner == "microsoft" else None
    weights.save(source, tmp_path / "a.safetensors", naming=naming)
    server.files[f"/{owner}/resnet18.thin/resolve/main/{name}"] = (tmp_path / "a.safetensors").read_bytes()
    for _ in range(2):
        net = resfit.create_model("resnet18", weights=f"{owner}/resnet18.thin", **THIN)
        np.testing.assert_array_equal(head(net), head(source))
        asked = list(server.asked)
    assert any(line == f"GET /{owner}/resnet18.thin/resolve/main/{name}" for line in asked)
    server.close()
    resfit.create_model("resnet18", weights=f"{owner}/resnet18.thin", **THIN)
    assert server.asked == asked


def test_the_config_in_a_repository_is_downloaded_and_checked(cache: Path, server: Server, file: Path) -> None:
    place = "/timm/resnet18.thin/resolve/main"
    server.files = {
        f"{place}/model.safetensors": file.read_bytes(),
        f"{place}/config.json": b'{"architecture": "resnetblur18"}',
    }
    for _ in range(2):
        with pytest.raises(WeightsError, match=r"timm's resnetblur18, which has antialias='blur'"):
            resfit.create_model("resnet18", weights="timm/resnet18.thin", **THIN)
        asked = list(server.asked)
    assert f"GET {place}/config.json" in asked
    server.close()
    with pytest.raises(WeightsError, match="resnetblur18"):
        resfit.create_model("resnet18", weights="timm/resnet18.thin", **THIN)
    assert server.asked == asked
    resfit.create_model("resnet18", weights="timm/resnet18.thin", antialias="blur", **THIN)


@pytest.mark.parametrize("offline", [True, pytest.param(False, marks=pytest.mark.exhaustive)])
def test_a_failed_hub_download_is_explained(
    offline: bool, cache: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    server.close()
    with pytest.raises(DownloadError, match=r"is not in the cache of huggingface_hub.*pass its path as weights="):
        resfit.create_model("resnet18", weights="timm/resnet18.thin", **THIN)


def test_a_repository_without_weights_raises(cache: Path, server: Server) -> None:
    with pytest.raises(DownloadError, match="could not be downloaded"):
        resfit.create_model("resnet18", weights="timm/resnet18.thin", **THIN)


def test_a_missing_huggingface_hub_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(
        MissingPackageError, match=r"needs the package huggingface_hub.*pip install 'resfit\[weights\]'"
    ):
        resfit.create_model("resnet18", weights="timm/resnet18.thin")
