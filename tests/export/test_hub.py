"""Model cards, and models that travel through a local hub."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import nnx

import resfit
from resfit.errors import ArgumentError, HubError, MissingPackageError, SavedModelError, WeightsError
from tests.helpers import PlainNet

hub = pytest.importorskip("huggingface_hub", reason="needs the package huggingface_hub")
fake_hub = pytest.importorskip("tests.export.fake_hub", reason="needs the packages of huggingface_hub")

# huggingface_hub 2.4 warns of itself, where it uploads without the package hf_xet.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload:DeprecationWarning")

NAME = "user/digits"
X = np.random.default_rng(0).integers(0, 256, (32, 8, 8, 3)).astype("uint8")
Y = np.arange(32) % 3


def untrained(**fields: Any) -> resfit.Model:
    thin: dict[str, Any] = {"depths": (1,), "widths": (4,)}
    return resfit.Model(resfit.create_model("resnet20", num_classes=3, **thin | fields))


def trained(**options: Any) -> resfit.Model:
    model = untrained()
    model.class_names = ["one|two", "`code`", "*stars*"]
    model.transforms = resfit.transforms.Transforms(resize=8, crop=8)
    model.compile("adamw", learning_rate=0.01, augment="cifar", ema=0.9, seed=3)
    model.fit(X, Y, epochs=2, verbose=0, validation_data=(X[:9], Y[:9]), **options)
    return model


@pytest.fixture(scope="module")
def model() -> resfit.Model:
    return trained()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """Start a hub, with an empty cache and a valid token."""
    from huggingface_hub import constants

    running = fake_hub.FakeHub()
    for proxy in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "HF_TOKEN"):
        monkeypatch.delenv(proxy, raising=False)
    template = running.url + "/{repo_id}/resolve/{revision}/{filename}"
    for name, value in {
        "ENDPOINT": running.url, "HUGGINGFACE_CO_URL_TEMPLATE": template, "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True, "HF_TOKEN_PATH": str(tmp_path / "token"),
    }.items():  # fmt: skip
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("HF_TOKEN", fake_hub.TOKEN)
    yield running
    running.close()


# --- the card ------------------------------------------------------------------------------------------------------


def test_the_card_says_what_the_model_knows(model: resfit.Model) -> None:
    card = hub.ModelCard(model.card(NAME, license="mit", datasets=["mnist"]))
    data = card.data.to_dict()
    measured = model.history.history
    assert data["library_name"] == "resfit"
    assert (data["license"], data["datasets"], data["pipeline_tag"]) == ("mit", ["mnist"], "image-classification")
    assert {"resfit", "jax", "flax", "resnet"} == set(data["tags"])
    assert data["metrics"] == ["accuracy"]
    (result,) = card.data.eval_results
    assert (result.dataset_type, result.metric_type, result.dataset_split) == ("mnist", "accuracy", "validation")
    assert result.metric_value == measured["val_accuracy"][-1]
    for said in (
        f"resfit.from_hub({NAME!r})", "435", "uint8, 8 × 8 × 3", r"one\|two", r"\`code\`", r"\*stars\*",
        "| training examples | 32 |", "| epochs | 2 |", "| batch size | 32 |", "| optimizer | adamw |",
        "| learning rate | 0.01 |", "| augmentation | cifar |", "| seed | 3 |", "Transforms(resize=8, crop=8",
        'model.predict_images("photo.jpg", top=3)', '"num_classes": 3', f"| resfit | {resfit.__version__} |",
        f"| accuracy | {measured['accuracy'][-1]:.5g} | {measured['val_accuracy'][-1]:.5g} |",
    ):  # fmt: skip
        assert said in card.text, said
    assert fake_hub.validated(str(card)).status == 200


def test_names_that_are_not_utf8_are_escaped_in_the_card(model: resfit.Model) -> None:
    other = resfit.Model(model.module)
    other.class_names = ["caf\udce9", "\ud83d", "c"]
    card = other.card()
    card.encode("utf-8")  # as it is written
    assert r"| caf\\udce9 |" in card
    assert r"| \\ud83d |" in card


def test_a_network_of_the_zoo_is_named_by_it(model: resfit.Model) -> None:
    zoo = resfit.Model(resfit.create_model("resnet20", num_classes=7, in_channels=1)).card()
    assert "# resnet20\n" in zoo
    assert "| architecture | resnet20 |" in zoo
    assert "| architecture | ResNet |" in model.card()


def test_results_without_a_dataset_are_in_the_text_only(model: resfit.Model) -> None:
    card = hub.ModelCard(model.card())
    assert card.data.eval_results is None
    assert "| accuracy |" in card.text


def test_results_of_other_weights_are_not_those_of_the_model(model: resfit.Model) -> None:
    card = hub.ModelCard(model.card(weights="ema", datasets="mnist"))
    assert card.data.eval_results is None
    assert "which measured the weights as trained" in card.text
    assert "| weights | averages of the trained weights |" in card.text


def test_results_are_those_of_the_epoch_whose_weights_were_restored() -> None:
    """A validation value that grows is worse in the second epoch."""
    values = iter([1.0, 2.0])
    stop = resfit.callbacks.EarlyStopping("made", patience=5, restore_best_weights=True, mode="min")
    made = resfit.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: logs.update(made=next(values)))
    model = trained(callbacks=[made, stop])
    assert model.history.weights_epoch == 0
    (result,) = hub.ModelCard(model.card(datasets=["mnist"])).data.eval_results
    assert result.metric_value == model.history.history["val_accuracy"][0]
    assert "After epoch 1," in model.card()
    model.fit(X, Y, epochs=1, verbose=0)
    assert model.history.weights_epoch is None


def test_a_model_that_does_not_classify_has_no_task() -> None:
    card = hub.ModelCard(resfit.Model(PlainNet(rngs=nnx.Rngs(0))).card())
    assert card.data.pipeline_tag is None
    assert "resfit.from_hub('user/name', module=PlainNet(...))" in card.text
    assert "## Training" not in card.text


def test_segmentation_is_told_by_the_outputs() -> None:
    class Dense(nnx.Module):
        def __init__(self, *, rngs: nnx.Rngs) -> None:
            self.conv = nnx.Conv(3, 2, (1, 1), rngs=rngs)

        def __call__(self, x: Any) -> Any:
            return self.conv(x)

    model = resfit.Model(Dense(rngs=nnx.Rngs(0)))
    model.compile("sgd", learning_rate=0.1)
    model.fit(X, np.zeros(X.shape[:3], "int32"), verbose=0)
    assert hub.ModelCard(model.card()).data.pipeline_tag == "image-segmentation"


def test_an_unknown_field_of_the_card_raises(model: resfit.Model) -> None:
    with pytest.raises(ArgumentError, match=r"card got dataset='mnist'\. .* Did you mean 'datasets'\?"):
        model.card(dataset="mnist")


# --- the hub -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"repo_id": 3}, "card got repo_id=3. Expected 'user/name'"),
        ({"datasets": 3}, "card got datasets=3. Expected a name of a dataset"),
    ],
    ids=["repository", "datasets"],
)
def test_a_value_of_another_type_in_the_card_raises(
    arguments: dict[str, Any], message: str, model: resfit.Model
) -> None:
    with pytest.raises(ArgumentError, match=message):
        model.card(**arguments)


def test_a_model_comes_back_from_the_hub_and_predicts_the_same_bits(model: resfit.Model, server: Any) -> None:
    url = model.push_to_hub(NAME, commit_message="Two epochs", card=model.card(NAME, datasets=["mnist"]))
    repository = server.repositories[NAME]
    assert url == f"{server.url}/{NAME}/commit/{repository.branches['main']}"
    assert repository.messages == ["Create", "Two epochs"]
    assert not repository.private
    files = repository.commits[repository.branches["main"]]
    assert set(files) == {"model.safetensors", "README.md", "config.json"}
    assert json.loads(files["config.json"])["spec"] == model.module.spec.to_dict()
    assert hub.ModelCard(files["README.md"].decode()).data.datasets == ["mnist"]
    again = resfit.from_hub(NAME)
    np.testing.assert_array_equal(again.predict(X, verbose=0), model.predict(X, verbose=0))
    assert again.class_names == model.class_names
    assert again.transforms == model.transforms
    server.close()  # no network from here on
    asked = list(server.asked)
    np.testing.assert_array_equal(resfit.from_hub(NAME).predict(X, verbose=0), model.predict(X, verbose=0))
    assert server.asked == asked


def test_revisions_averages_and_private_repositories(
    model: resfit.Model, server: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model.push_to_hub(NAME, private=True)
    repository = server.repositories[NAME]
    assert repository.private
    first = repository.branches["main"]
    repository.branches["averages"] = first
    model.push_to_hub(NAME, revision="averages", weights="ema")
    for revision, weights in ((None, "raw"), ("averages", "ema"), (first, "raw")):
        loaded = resfit.from_hub(NAME, revision=revision)
        np.testing.assert_array_equal(loaded.predict(X, verbose=0), model.predict(X, weights=weights, verbose=0))
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    with pytest.raises(HubError, match=r"from_hub got 'user/digits'.*For a private one log in"):
        resfit.from_hub(NAME)
    assert resfit.from_hub(NAME, token=fake_hub.TOKEN).class_names == model.class_names


def test_a_custom_module_is_filled(server: Any) -> None:
    model = resfit.Model(PlainNet(rngs=nnx.Rngs(0)))
    model.push_to_hub(NAME)
    with pytest.raises(SavedModelError, match="holds a PlainNet, which resfit cannot build"):
        resfit.from_hub(NAME)
    loaded = resfit.from_hub(NAME, module=PlainNet(rngs=nnx.Rngs(1)))
    np.testing.assert_array_equal(loaded.get_weights()[0], model.get_weights()[0])


def test_a_subclass_comes_back_as_itself(server: Any) -> None:
    class Own(resfit.Model):
        pass

    untrained().push_to_hub(NAME)
    assert type(Own.from_hub(NAME)) is Own


def push(**options: Any) -> Callable[[], Any]:
    return lambda: untrained().push_to_hub(NAME, **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (push(token="hf_other"), r"Invalid credentials.*hf auth login"),
        (lambda: untrained().push_to_hub("other/digits"), r"HfHubHTTPError.*a token that may write"),
        (push(revision="v2"), r"revision='v2': RevisionNotFoundError.*huggingface_hub\.create_branch\('user/digits'"),
        (lambda: untrained().push_to_hub("a/b/c"), r"Expected 'user/name' of letters"),
        (
            push(card="---\nlicense: no-such-license\n---\n"),
            r"ValueError: Invalid metadata in README\.md.*license.*Correct the arguments of model\.card",
        ),
        (
            lambda: resfit.from_hub("user/none"),
            r"from_hub got 'user/none': RepositoryNotFoundError: .*Check the spelling",
        ),
        (lambda: resfit.from_hub("user/none", revision="v2"), r"'user/none', revision='v2'"),
        (lambda: resfit.from_hub("a b"), r"from_hub got 'a b', which cannot be the name"),
    ],
    ids=["token", "rights", "branch", "name", "license", "missing", "missing revision", "invalid"],
)
def test_the_hub_refuses_and_the_error_names_the_remedy(call: Callable[[], Any], message: str, server: Any) -> None:
    with pytest.raises(HubError, match=f"(?s){message}") as raised:
        call()
    assert "\n" not in str(raised.value)


def test_an_unknown_revision_of_a_repository_raises(server: Any) -> None:
    untrained().push_to_hub(NAME)
    with pytest.raises(HubError, match=r"revision='v2': RevisionNotFoundError.*a branch, a tag or a commit"):
        resfit.from_hub(NAME, revision="v2")


def test_a_push_without_a_token_sends_nothing(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match=r"found no token.*hf auth login.*HF_TOKEN.*token="):
        untrained().push_to_hub(NAME)
    assert server.asked == []
    untrained().push_to_hub(NAME, token=fake_hub.TOKEN)


@pytest.mark.parametrize("switch", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["offline", "closed"])
def test_without_a_network_the_error_names_save_and_load(
    switch: bool, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", switch)
    server.close()
    for call in (push(), lambda: resfit.from_hub(NAME)):
        with pytest.raises(HubError, match=rf"{re.escape(server.url)}.*HF_HUB_OFFLINE.*resfit\.load\(path\)"):
            call()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"model.safetensors": b"?" * 99, "config.json": b'{"architecture": "resnet18"}'},
            r"'architecture': 'resnet18'",
        ),
        ({"pytorch_model.bin": b"?"}, r"its files are \['pytorch_model\.bin'\]"),
        ({"config.json": b"\xff"}, r"config\.json says None"),
        ({"config.json": b'{"library_name": "resfit"}'}, r"'library_name': 'resfit'"),
    ],
    ids=["timm", "torch", "damaged", "empty"],
)
def test_a_repository_of_something_else_is_described(files: dict[str, bytes], message: str, server: Any) -> None:
    server.repositories[NAME] = fake_hub.Repository(private=False)
    server.repositories[NAME].commit(files, "", "main")
    with pytest.raises(SavedModelError, match=rf"'user/digits', which holds no model of resfit.*{message}"):
        resfit.from_hub(NAME)
    assert not any("model.safetensors" in line for line in server.asked)


def test_a_damaged_file_in_the_cache_is_named(server: Any, tmp_path: Path) -> None:
    untrained().push_to_hub(NAME)
    resfit.from_hub(NAME)
    (file,) = (tmp_path / "hub").glob("**/model.safetensors")
    blob = file.resolve()
    content = blob.read_bytes()
    blob.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(WeightsError, match="is damaged"):
        resfit.from_hub(NAME)


@pytest.mark.parametrize("call", [push(), lambda: resfit.from_hub(NAME), lambda: untrained().card()],
                         ids=["push", "pull", "card"])  # fmt: skip
def test_a_missing_huggingface_hub_is_named(call: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(MissingPackageError, match=r"needs the package huggingface_hub.*'resfit\[weights\]'"):
        call()
