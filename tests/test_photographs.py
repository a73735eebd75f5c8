"""From a folder of photographs to named predictions: the class names, size and crop travel with the model."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import nnx
from PIL import Image

import resfit
from resfit.data import folder
from resfit.errors import CompileError, DataError, LabelError, ModuleError, NotCompiledError, RankError
from resfit.transforms import FolderTransforms, Transforms, transforms_for
from resfit.transforms.pretrained_transforms import published_transforms
from tests.helpers import PlainNet, sample_photograph

PHOTO = sample_photograph("china.jpg")
NAMES = ("blue", "green", "red")


def written(path: Path, each: int = 10) -> Path:
    """Write pieces of a photograph of several sizes, whose tint is the class."""
    for label, name in enumerate(NAMES):
        (path / name).mkdir(parents=True)
        for i in range(each):
            piece = PHOTO.crop((20 * i, 10 * i, 20 * i + 60 + i, 10 * i + 50))
            pixels = np.asarray(piece) // 2
            pixels[..., 2 - label] += 100
            Image.fromarray(pixels).save(path / name / f"{i}.jpg")
    return path


def net(classes: int = 3, **fields: Any) -> Any:
    return resfit.create_model("resnet20", num_classes=classes, **{"depths": (1,), "widths": (4,)} | fields)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("photos") / "photos")


@pytest.fixture(scope="module")
def trained(photos: Path) -> resfit.Model:
    train, val = folder(photos, size=16, crop="random").split(0.2)
    model = resfit.Model(net())
    model.compile("adamw", learning_rate=0.02, dispatch="jit")
    model.fit(train, epochs=10, batch_size=8, validation_data=val, verbose=0)
    return model


def assert_close(found: Any, expected: Any, within: float = 1e-5) -> None:
    """Check that names are equal, and probabilities nearly: another batch size can change the last digit."""
    assert [name for name, _ in found] == [name for name, _ in expected]
    np.testing.assert_allclose([value for _, value in found], [value for _, value in expected], atol=within)


# --- the model names photographs -----------------------------------------------------------------------------------


def test_a_saved_model_names_a_photograph(trained: resfit.Model, photos: Path, tmp_path: Path) -> None:
    trained.save(tmp_path / "photos.safetensors")
    model = resfit.load(tmp_path / "photos.safetensors")
    assert model.class_names == list(NAMES)
    assert model.transforms == FolderTransforms(size=(16, 16), crop="center", mode="RGB")
    for name in NAMES:
        best = model.predict_images(photos / name / "3.jpg", top=2)
        assert best[0][0] == name
        assert best[0][1] > 1 / 3
        assert len(best) == 2


def test_an_exported_program_has_the_transforms_and_names(trained: resfit.Model, photos: Path, tmp_path: Path) -> None:
    trained.export(tmp_path / "photos.npz", outputs="probabilities", platforms=["cpu"])
    program = resfit.load_exported(tmp_path / "photos.npz")
    assert program.transforms == trained.transforms
    probabilities = program(program.transforms.batch([photos / "red" / "0.jpg"]))
    (best,) = resfit.top_k(probabilities, 3, program.class_names)
    assert_close(best, trained.predict_images(photos / "red" / "0.jpg", top=3))


def test_a_photograph_has_the_pixels_and_the_prediction_of_the_validation(trained: resfit.Model, photos: Path) -> None:
    images = folder(photos, size=16, crop="center")
    named = trained.predict_images(photos, top=3)
    assert list(named) == list(images.paths)
    probabilities = trained.predict(images, outputs="probabilities", verbose=0)
    for row, best in zip(probabilities, named.values(), strict=True):
        assert [NAMES[i] for i in np.argsort(-row)] == [name for name, _ in best]
        np.testing.assert_array_equal(np.sort(row)[::-1].astype(np.float64), [value for _, value in best])


@pytest.mark.parametrize("form", ["str", "Path", "bytes", "PIL image", "pixels"])
def test_every_form_of_one_photograph_has_one_result(trained: resfit.Model, photos: Path, form: str) -> None:
    path = photos / "red" / "0.jpg"
    with Image.open(path) as image:
        forms = {
            "str": str(path),
            "Path": path,
            "bytes": path.read_bytes(),
            "PIL image": image.copy(),
            "pixels": np.asarray(image),
        }
    expected = trained.predict_images(path, top=1)
    first, second = trained.predict_images([forms[form], path], top=1)
    assert_close(
        trained.predict_images(forms[form], top=1), expected, within=0.02
    )  # pixels are resized from all of them
    assert_close(first, expected, within=0.02)
    assert_close(second, expected)


def test_a_dataset_of_files_is_named_by_its_paths_with_the_crop_of_the_model(
    trained: resfit.Model, photos: Path
) -> None:
    images = folder(photos, size=99, crop="random")[::7]
    named = trained.predict_images(images, top=1)
    for path in images.paths:
        assert_close(named[path], trained.predict_images(path, top=1))


def test_a_model_of_arrays_takes_pixels_and_explains_what_a_path_needs(photos: Path) -> None:
    model = resfit.Model(PlainNet(2, rngs=nnx.Rngs(0)))
    x = np.random.default_rng(0).integers(0, 255, (8, 8, 8, 1)).astype("uint8")
    model.compile("sgd", learning_rate=0.1, dispatch="jit")
    model.fit(x, np.arange(8) % 2, verbose=0)
    assert [len(best) for best in model.predict_images(x, top=3)] == [2] * 8
    assert model.predict_images(x[0]) == model.predict_images(x[0, ..., 0]) == model.predict_images(x[:1])[0]
    with pytest.raises(DataError, match=r"FolderTransforms\(size=\(8, 8\)\)"):
        model.predict_images(photos / "red" / "0.jpg")


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        ("none.jpg", DataError, "none.jpg could not be read: No such file in"),
        ([], DataError, r"predict_images got \[\]"),
        (3, DataError, "predict_images got 3"),
        (np.zeros((4, 4, 3)), DataError, "uint8 pixels"),
    ],
    ids=str,
)
def test_what_is_no_photograph_raises(trained: resfit.Model, images: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        trained.predict_images(images)


def test_a_folder_without_images_raises(trained: resfit.Model, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no image among its 0 files"):
        trained.predict_images(tmp_path)


def named_by(classes: int, **arguments: Any) -> resfit.Model:
    model = resfit.Model(PlainNet(classes, rngs=nnx.Rngs(0)))
    model.compile("sgd", learning_rate=0.1, dispatch="jit", **arguments)
    return model


def test_a_single_logit_is_two_classes() -> None:
    x, model = np.zeros((2, 8, 8, 1), np.float32), named_by(1)
    model.fit(x, np.arange(2), verbose=0)
    model.class_names = ["no", "yes"]
    probability = float(model.predict(x, outputs="probabilities", verbose=0)[0].squeeze())
    assert dict(model.predict_images(x)[0]) == pytest.approx({"yes": probability, "no": 1 - probability})


def test_the_labels_of_a_multi_label_model_are_sorted_by_their_own_probabilities() -> None:
    loss = resfit.losses.BinaryCrossEntropy(multi_label=True)
    x, model = np.ones((2, 8, 8, 1), np.float32), named_by(3, loss=loss)
    model.class_names = ["a", "b", "c"]
    row = model.predict(x, outputs="probabilities", verbose=0)[0]
    best = model.predict_images(x, top=2)[0]
    assert best == [("abc"[i], float(row[i])) for i in np.argsort(-row)[:2]]


def test_outputs_that_are_no_classes_raise() -> None:
    class Masks(nnx.Module):
        def __call__(self, x: Any) -> Any:
            return x

    with pytest.raises(LabelError, match=r"\(1, 8, 8, 1\)"):
        resfit.Model(Masks()).predict_images(np.zeros((1, 8, 8, 1), np.float32))


# --- what fit learns from a folder ---------------------------------------------------------------------------------


def test_a_folder_can_be_split_by_fit(photos: Path) -> None:
    model = resfit.Model(net())
    model.compile("adamw", learning_rate=0.02, dispatch="jit")
    data = folder(photos, size=16)
    history = model.fit(data, validation_split=0.2, batch_size=8, verbose=0)
    training, validation = data.split(0.2)
    model.compile("adamw", learning_rate=0.02, dispatch="jit")
    assert model.evaluate(validation, verbose=0)[1] == history.history["val_accuracy"][0]
    assert len(training) == 24


def test_transforms_that_were_set_stay_and_a_difference_is_reported(
    photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = resfit.Model(net())
    model.transforms = Transforms(resize=20, crop=18, mean=None, std=None)
    model.compile("adamw", dispatch="jit")
    with caplog.at_level(logging.WARNING, "resfit"):
        model.fit(folder(photos, size=16), batch_size=8, verbose=0)
    assert model.transforms == Transforms(resize=20, crop=18, mean=None, std=None)
    assert "crops photographs to 18 x 18 pixels, and the training images have 16 x 16" in caplog.text
    model.transforms = FolderTransforms(size=16)
    model.fit(folder(photos, size=12), batch_size=8, verbose=0)
    assert model.transforms == FolderTransforms(size=12)


def test_a_fit_without_a_step_learns_no_transforms(photos: Path) -> None:
    model = resfit.Model(net())
    model.compile("adamw", dispatch="jit")
    with pytest.raises(DataError):
        model.fit(folder(photos, size=16, crop="random"), shuffle=False, verbose=0)
    assert (model.transforms, model.class_names) == (None, None)


def test_another_size_of_the_validation_images_warns(photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = resfit.Model(net())
    model.compile("adamw", dispatch="jit")
    x, y = np.zeros((6, 16, 16, 3), np.uint8), np.arange(6) % 3
    said = "The training images have 16 x 16 pixels, and the validation images "
    for train, val, warns in (
        ((x, y), (x, y), False),
        ((x, y), (np.zeros((6, 12, 12, 3), np.uint8), y), True),
        ((folder(photos, size=16), None), folder(photos, size=16, crop="center"), False),
        ((folder(photos, size=16), None), folder(photos, size=(16, 12)), True),
        ((folder(photos, size=16), None), (x, y), False),
    ):
        caplog.clear()
        model.fit(*train, validation_data=val, batch_size=8, verbose=0)
        assert (said in caplog.text) is warns


def test_gray_images_are_read_as_in_the_training(photos: Path) -> None:
    model = resfit.Model(net(in_channels=1))
    model.compile("adamw", dispatch="jit")
    model.fit(folder(photos, size=(12, 10), mode="L"), batch_size=8, verbose=0)
    assert model.transforms.batch([photos / "blue" / "0.jpg", np.zeros((7, 9), np.uint8)]).shape == (2, 12, 10, 1)
    expected = folder(photos, size=(12, 10), mode="L")[0][0]
    np.testing.assert_array_equal(model.transforms(photos / "blue" / "0.jpg"), expected)


@pytest.mark.parametrize(
    "options",
    [{"size": 0}, {"size": 8, "crop": "random"}, {"mode": "CMYK"}, {"crop": "center"}, {"size": 8, "crop": 2.0}],
)
def test_wrong_options_of_transforms_raise(options: dict[str, Any]) -> None:
    with pytest.raises(DataError):
        FolderTransforms(**options)


def test_published_weights_bring_their_normalization_and_training_data_their_size(photos: Path) -> None:
    network = net()
    network.published_weights = ("timm/resnet18.a1_in1k@main", "resnet18")
    model = resfit.Model(network)
    published = transforms_for("timm/resnet18.a1_in1k")
    assert model.transforms == published
    model.compile("adamw", dispatch="jit")
    model.fit(folder(photos, size=16), batch_size=8, verbose=0)
    assert model.transforms == FolderTransforms(size=16)
    with pytest.raises(CompileError, match="was trained with Normalize"):
        model.compile("adamw", preprocess=None)
    gray = net(in_channels=1)
    gray.published_weights = network.published_weights
    assert resfit.Model(gray).transforms is None


@pytest.mark.parametrize(
    ("weights", "known"),
    [("torchvision/IMAGENET1K_V1", True), ("timm/resnet18.a1_in1k", True), ("runs/best.pth", False), ("", False)],
)
def test_weights_that_are_published_have_transforms(weights: str, known: bool) -> None:
    assert (published_transforms(weights, "resnet18") is not None) is known


# --- fine-tuning ---------------------------------------------------------------------------------------------------


def test_fine_tuning_replaces_the_head_and_trains_it_first(photos: Path) -> None:
    model = resfit.Model(net(classes=10))
    train, val = folder(photos, size=16).split(0.2)
    stem = np.asarray(model.module.stem.conv.kernel[...])
    seen: list[bool] = []

    class Unchanged(resfit.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            seen.append(bool(np.array_equal(stem, model.module.stem.conv.kernel[...])))

    history = model.fine_tune(train, val, epochs=2, batch_size=8, callbacks=Unchanged(), verbose=0)
    assert seen == [True, True, False, False]
    assert history.epoch == [2, 3]
    assert "val_accuracy" in history.history
    assert model.module.spec.num_classes == 3
    assert model.class_names == list(NAMES)
    assert model.predict_images(photos / "blue" / "0.jpg")[0][0] in NAMES


def test_fine_tuning_keeps_a_head_of_the_same_classes_and_replaces_one_of_other_names(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replaced: list[int] = []
    model = resfit.Model(net())
    kind = type(model.module)
    whole = kind.replace_head
    monkeypatch.setattr(
        kind, "replace_head", lambda self, classes, rngs=0: (replaced.append(classes), whole(self, classes, rngs=rngs))
    )
    x, y = np.zeros((8, 16, 16, 3), np.uint8), np.arange(8) % 3
    model.fine_tune((x, y), epochs=1, verbose=0)
    assert replaced == []
    model.class_names = ["cat", "dog", "cow"]
    model.fine_tune(folder(photos, size=16), epochs=1, batch_size=8, verbose=0)
    assert replaced == [3]
    assert model.class_names == list(NAMES)


def test_fine_tuning_needs_a_network_with_parts() -> None:
    with pytest.raises(ModuleError, match="PlainNet without parts"):
        resfit.Model(PlainNet(rngs=nnx.Rngs(0))).fine_tune((np.zeros((2, 8, 8, 1)), np.arange(2)))


# --- errors that name what was passed ------------------------------------------------------------------------------


def test_the_shape_of_one_photograph_is_named_and_not_that_of_a_batch() -> None:
    model, photo = resfit.Model(net()), np.zeros((200, 199, 3), np.uint8)
    model.compile("sgd", learning_rate=0.1, dispatch="jit")
    for call in (
        lambda: model.predict(photo, verbose=0),
        lambda: model.evaluate(photo, np.zeros(200, int), verbose=0),
        lambda: model.fit(photo, np.zeros(200, int), verbose=0),
    ):
        with pytest.raises(RankError, match=r"shape \(200, 199, 3\).*\(1, 200, 199, 3\)"):
            call()


def test_the_reason_for_another_compile_is_named(photos: Path) -> None:
    model = resfit.Model(net())
    with pytest.raises(DataError, match=r"resfit\.data\.folder"):
        model.evaluate(str(photos))
    with pytest.raises(NotCompiledError, match=r"The model was not compiled\. Call model\.compile\(\.\.\.\) before"):
        model.fit(folder(photos, size=16))
    model.compile("sgd", learning_rate=0.1, dispatch="jit")
    model.transforms = Transforms(resize=16, crop=16)
    with pytest.raises(NotCompiledError, match=r"Setting model\.transforms changed the preprocessing.*again before"):
        model.fit(folder(photos, size=16))
    model.compile("sgd", learning_rate=0.1, dispatch="jit")
    model.freeze("stem")
    with pytest.raises(NotCompiledError, match=r"model\.freeze changed the trained parts.*again before evaluate"):
        model.evaluate(folder(photos, size=16))
    model.compile("sgd", learning_rate=0.1, dispatch="jit")
    assert model.evaluate(folder(photos, size=16), verbose=0)


def test_doctor_takes_a_folder_and_names_a_missing_class(photos: Path) -> None:
    model = resfit.Model(net(classes=4))
    model.compile("adamw", dispatch="jit")
    images = folder(photos, size=16, crop="random", classes=[*NAMES, "missing"])
    report = resfit.doctor(model, folder(photos, size=16))
    assert report["labels"].found.startswith("30 labels of 3 of 4 classes")
    many = resfit.data.files(images.paths * 2, np.tile(images.labels, 2), size=16, classes=[*NAMES, "missing"])
    assert "No example is of class 'missing'" in resfit.doctor(model, many)["labels"].found
