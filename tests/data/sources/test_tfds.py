"""TensorFlow Datasets without TensorFlow: every row, the right columns, and errors."""

import importlib
import io
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets
from PIL import Image
from tensorflow_datasets import features as kinds
from tensorflow_datasets.core import registered
from tensorflow_datasets.testing import mocking

import resfit
from resfit.data import Geometry, TfdsSource, as_batches, prepare_tfds, tfds
from resfit.data.indexed import IndexedBatches
from resfit.errors import DataError, MissingPackageError
from tests import helpers
from tests.data import originals

ROWS = 22
NAMES = ["ape", "bee", "cat"]

PHOTO = kinds.Image(shape=(8, 8, 1))
KIND = kinds.ClassLabel(names=NAMES)


def picture(row: int) -> Image.Image:
    """Return an 8 x 8 gray image that is unique per row."""
    return Image.fromarray(np.full((8, 8), row, np.uint8) + np.arange(8, dtype=np.uint8))


def example(row: int, columns: Mapping[str, Any]) -> dict[str, Any]:
    values = {kinds.Image: picture(row), kinds.LabeledImage: picture(row), kinds.ClassLabel: row % 3}
    return {name: values.get(type(kind), row) for name, kind in columns.items()}


def builder_class(
    name: str,
    columns: Mapping[str, Any],
    keys: tuple[Any, ...] | None = None,
    rows: int = ROWS,
    make: Callable[[int, Mapping[str, Any]], dict[str, Any]] = example,
) -> Any:
    """Return an unregistered builder with the splits "train" of `rows` rows and "test" of 5 rows."""

    class Builder(tensorflow_datasets.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tensorflow_datasets.core.Version("1.0.0")
        pkg_dir_path = None

        def _info(self) -> Any:
            return tensorflow_datasets.core.DatasetInfo(
                builder=self, features=kinds.FeaturesDict(columns), supervised_keys=keys
            )

        def _split_generators(self, manager: Any) -> Any:
            return {
                "train": self._generate_examples(range(rows)),
                "test": self._generate_examples(range(rows, rows + 5)),
            }

        def _generate_examples(self, wanted: range) -> Any:
            for row in wanted:
                yield row, make(row, columns)

    Builder.name = name
    return Builder


def prepare(folder: Path, *arguments: Any, file_format: str = "array_record", **options: Any) -> Path:
    builder_class(*arguments, **options)(data_dir=folder, file_format=file_format).download_and_prepare()
    return folder


@pytest.fixture(scope="module")
def animals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepare a dataset "animals" of 22 and 5 rows."""
    return prepare(tmp_path_factory.mktemp("animals"), "animals", {"photo": PHOTO, "kind": KIND})


def rows_of(batches: Iterator[Any]) -> list[tuple[int, int]]:
    """Return (row, label) of every example in order; the first pixel of an image is its row."""
    return [
        (int(x[0, 0, 0]), int(y))
        for batch in batches
        for x, y in zip(batch.x[: batch.size], batch.y[: batch.size], strict=True)
    ]


EVERY_ROW = Counter((row, row % 3) for row in range(ROWS))


# --- rows and their order ---------------------------------------------------------------------------------------------


@pytest.mark.representatives("False-1", "True-1")
@pytest.mark.parametrize("threads", [0, 1, 3])
@pytest.mark.parametrize("pad", [False, True])
def test_an_epoch_has_every_row_once_and_resumes_at_any_batch(animals: Path, threads: int, pad: bool) -> None:
    source = tfds("animals", "train", data_dir=animals)
    source.threads = threads
    batches = IndexedBatches(source, Geometry(batch_size=4, seed=3, pad=pad))
    epochs = [rows_of(batches.epoch(epoch)) for epoch in (0, 1)]
    assert [Counter(epoch) for epoch in epochs] == [EVERY_ROW, EVERY_ROW]
    assert epochs[0] != epochs[1]
    again = IndexedBatches(tfds("animals", "train", data_dir=animals), Geometry(batch_size=4, seed=3, pad=pad))
    assert rows_of(again.epoch(1)) == epochs[1]
    for start in range(batches.steps + 1):
        assert rows_of(batches.epoch(1, start)) == epochs[1][4 * start :]


@pytest.mark.parametrize("split", ["test", "train[:50%]", "train[5:9]+train[20:]"])
def test_a_slice_of_a_split_equals_that_of_tfds(animals: Path, split: str) -> None:
    source = tfds("animals", split, data_dir=animals)
    plain = tensorflow_datasets.data_source("animals", split=split, data_dir=animals, download=False)
    x, y, weight = source.take(slice(0, len(source)))
    assert len(source) == len(plain) > 0
    np.testing.assert_array_equal(x, np.stack([one["photo"] for one in plain]))
    np.testing.assert_array_equal(y, [one["kind"] for one in plain])
    assert (x.dtype, y.dtype, weight) == (np.uint8, np.int32, None)


def test_rows_have_the_requested_order(animals: Path) -> None:
    source = tfds("animals", "train", data_dir=animals)
    all_rows = source.take(slice(0, ROWS))[0]
    np.testing.assert_array_equal(source.take(np.array([7, 2, 2, 21]))[0], all_rows[[7, 2, 2, 21]])
    np.testing.assert_array_equal(source.take(slice(3, 11, 2))[0], all_rows[3:11:2])


# --- columns ----------------------------------------------------------------------------------------------------------

SCALAR = kinds.Scalar(np.int64)
DEPTH = kinds.Image(shape=(8, 8, 1))
MASK = kinds.LabeledImage(labels=2, shape=(8, 8, 1))

COLUMNS: dict[str, tuple[dict[str, Any], Any, dict[str, str], Any]] = {
    # columns, supervised keys, arguments -> (image, label), or words of the error
    "the only ones of their kind": ({"image": KIND, "label": PHOTO}, None, {}, ("label", "image")),
    "declared": ({"a": PHOTO, "b": DEPTH, "c": KIND, "d": KIND}, ("b", "d"), {}, ("b", "d")),
    "declared, a number": ({"a": PHOTO, "n": SCALAR, "c": KIND}, ("a", "n"), {}, ("a", "n")),
    "a mask is no image": ({"mask": MASK, "a": PHOTO, "c": KIND}, None, {}, ("a", "c")),
    "asked for": ({"a": PHOTO, "b": DEPTH, "c": KIND}, ("a", "c"), {"image": "b"}, ("b", "c")),
    "asked for twice": (
        {"a": PHOTO, "b": DEPTH, "c": KIND, "n": SCALAR},
        None,
        {"image": "b", "label": "n"},
        ("b", "n"),
    ),
    "two images": ({"a": PHOTO, "b": DEPTH, "c": KIND}, None, {}, "2 columns that could be the image.*'a' .Image.*'b'"),
    "no image": ({"image": SCALAR, "c": KIND}, None, {}, "0 columns that could be the image.*'image' .Scalar"),
    "no label": ({"a": PHOTO, "label": SCALAR}, None, {}, "0 columns that could be the label.*label=.*'label' .Scalar"),
    "two labels": ({"a": PHOTO, "c": KIND, "d": KIND}, None, {}, "2 columns that could be the label"),
    "missing": ({"a": PHOTO, "c": KIND}, None, {"image": "b"}, "has no column 'b'. Expected image= one of 'a' .Image"),
}


@pytest.mark.representatives("the only ones of their kind", "declared", "a mask is no image", "two images", "no label")
@pytest.mark.parametrize("case", COLUMNS)
def test_columns_are_found_by_type_or_declaration_not_by_name(case: str, tmp_path: Path) -> None:
    columns, keys, asked, expected = COLUMNS[case]
    prepare(tmp_path, "table", columns, keys, rows=3)
    if isinstance(expected, str):
        with pytest.raises(DataError, match=expected):
            tfds("table", "train", data_dir=tmp_path, **asked)
        return
    x, y, _ = tfds("table", "train", data_dir=tmp_path, **asked).take(slice(0, 3))
    plain = tensorflow_datasets.data_source("table", split="train", data_dir=tmp_path, download=False)
    np.testing.assert_array_equal(x, np.stack([one[expected[0]] for one in plain]))
    np.testing.assert_array_equal(y, [one[expected[1]] for one in plain])


def test_a_dataset_of_only_images_has_no_labels(tmp_path: Path) -> None:
    prepare(tmp_path, "table", {"a": PHOTO}, rows=3)
    x, y, _ = tfds("table", "train", data_dir=tmp_path).take(slice(0, 3))
    assert (x.shape, y) == ((3, 8, 8, 1), None)


def test_other_images_are_not_decoded(tmp_path: Path) -> None:
    prepare(tmp_path, "table", {"a": PHOTO, "b": DEPTH, "c": KIND}, rows=3)
    source = tfds("table", "train", data_dir=tmp_path, image="b")
    assert isinstance(source._source[0]["a"], bytes)
    assert source.take(slice(0, 3))[0].shape == (3, 8, 8, 1)


@pytest.mark.parametrize("passed", ["by name", "as a data source"])
def test_images_are_decoded_as_those_of_a_folder(passed: str, tmp_path: Path) -> None:
    colors = np.random.default_rng(0).integers(0, 256, (4, 4, 3)).astype(np.uint8)

    def turned(row: int, columns: Mapping[str, Any]) -> dict[str, Any]:
        exif = Image.Exif()
        exif[0x0112] = 1 + row % 8
        file = io.BytesIO()
        Image.fromarray(colors).save(file, "png", exif=exif)
        return {"photo": io.BytesIO(file.getvalue()), "kind": row % 3}

    prepare(tmp_path, "turned", {"photo": kinds.Image(shape=(4, 4, 3)), "kind": KIND}, rows=8, make=turned)
    source = (
        tfds("turned", "train", data_dir=tmp_path)
        if passed == "by name"
        else TfdsSource(tensorflow_datasets.data_source("turned", split="train", data_dir=tmp_path, download=False))
    )
    x, *_ = source.take(slice(0, 8))
    assert x[0].shape == (4, 4, 3)
    expected = {6: np.rot90(colors, -1), 8: np.rot90(colors, 1), 3: colors[::-1, ::-1], 1: colors}
    for orientation, pixels in expected.items():
        assert any((one == pixels).all() for one in x), orientation


def test_class_names_are_known_by_number(animals: Path, tmp_path: Path) -> None:
    assert tfds("animals", "train", data_dir=animals).classes == ("ape", "bee", "cat")
    prepare(tmp_path, "table", {"a": PHOTO, "n": SCALAR}, ("a", "n"), rows=3)
    assert tfds("table", "train", data_dir=tmp_path).classes is None


def test_images_of_several_sizes_raise_and_are_named(tmp_path: Path) -> None:
    def grows(row: int, columns: Mapping[str, Any]) -> dict[str, Any]:
        return {"photo": Image.new("L", (8 + row % 2, 8)), "kind": 0}

    prepare(tmp_path, "sizes", {"photo": kinds.Image(shape=(None, None, 1)), "kind": KIND}, rows=4, make=grows)
    with pytest.raises(DataError, match=r"example \d of sizes/1.0.0 has shape"):
        tfds("sizes", "train", data_dir=tmp_path).take(slice(0, 4))


@pytest.mark.parametrize("crop", [None, "center", 0.9])
def test_images_of_several_sizes_are_resized_as_those_of_a_folder(crop: Any, tmp_path: Path) -> None:
    colors = np.random.default_rng(0).integers(0, 256, (24, 30, 3), np.uint8)

    def grows(row: int, columns: Mapping[str, Any]) -> dict[str, Any]:
        file = io.BytesIO()
        Image.fromarray(colors[: 20 + row]).save(file, "png")
        return {"photo": io.BytesIO(file.getvalue()), "kind": row % 3}

    prepare(tmp_path, "sizes", {"photo": kinds.Image(shape=(None, None, 3)), "kind": KIND}, rows=4, make=grows)
    (tmp_path / "photos" / "a").mkdir(parents=True)
    for row in range(4):
        Image.fromarray(colors[: 20 + row]).save(tmp_path / "photos" / "a" / f"{row}.png")
    expected = resfit.data.folder(tmp_path / "photos", size=12, crop=crop).take(slice(0, 4))[0]
    source = tfds("sizes", "train", data_dir=tmp_path, size=12, crop=crop)
    found = source.take(slice(0, 4))[0]
    assert {one.tobytes() for one in found} == {one.tobytes() for one in expected}
    assert source.description["size"] == [12, 12]


def test_random_crops_depend_on_seed_epoch_and_row(animals: Path) -> None:
    source: Any = tfds("animals", "train", data_dir=animals, size=6, crop="random")
    with pytest.raises(DataError, match="Use crop='center'"):
        source.take(slice(0, 4))
    first, again, other = (source.for_epoch(3, epoch).take(slice(0, 8))[0] for epoch in (0, 0, 1))
    assert first.shape == (8, 6, 6, 1)
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    np.testing.assert_array_equal(source.for_epoch(3, 0).take(slice(4, 5))[0][0], first[4])


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "fits"), [(250, False), (90, True)])
def test_parquet_files_that_lack_rows_are_refused(rows: int, fits: bool, tmp_path: Path) -> None:
    """TFDS 4.9.10 loses the rows after the first hundred of a file but counts them."""
    prepare(tmp_path, "animals", {"photo": PHOTO, "kind": KIND}, rows=rows, file_format="parquet")
    plain = tensorflow_datasets.data_source("animals", split="train", data_dir=tmp_path, download=False)
    assert (len(plain) == rows) is fits  # otherwise the test has no effect
    if fits:
        assert len(tfds("animals", "train", data_dir=tmp_path)) == rows
        return
    for make in (lambda: tfds("animals", "train", data_dir=tmp_path), lambda: TfdsSource(plain)):
        with pytest.raises(
            DataError, match=rf"has {rows} examples by its metadata, but {len(plain)} can be read .parq"
        ):
            make()


def test_a_lost_file_is_noticed(tmp_path: Path) -> None:
    prepare(tmp_path, "animals", {"photo": PHOTO, "kind": KIND})
    (shard,) = tmp_path.glob("animals/1.0.0/animals-train*")
    shard.unlink()
    with pytest.raises(Exception, match="animals-train"):
        tfds("animals", "train", data_dir=tmp_path).take(slice(0, 2))


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("animals", "valid", r"no examples in the split 'valid'.*Expected one of \['test', 'train'\]"),
        ("animals", "train[:0]", "no examples in the split"),
        ("animals", "train[:x]", "no examples in the split"),
        ("fashion_mnits", "train", "has no 'fashion_mnits'.*such as fashion_mnist"),
        ("no/such", "train", "has no 'no/such'.*Expected a name from tfds.list_builders"),
        ("fashion_mnist", "train", r"not prepared in .*resfit.data.prepare_tfds\('fashion_mnist', data_dir="),
        (
            "cifar10",
            "train",
            "not prepared in .*download=True.*if that needs TensorFlow, as for mnist and cifar10",
        ),
        ("beans", "train", "not prepared in .*download=True"),
    ],
)
def test_missing_data_raise_with_a_remedy(name: str, split: str, message: str, animals: Path) -> None:
    with pytest.raises(DataError, match=message):
        tfds(name, split, data_dir=animals)


def test_a_dataset_in_tfrecord_files_raises_with_a_remedy(animals: Path, tmp_path: Path) -> None:
    """Writing tfrecord files needs TensorFlow, so the test only changes the format in the metadata."""
    source, target = animals / "animals" / "1.0.0", tmp_path / "animals" / "1.0.0"
    target.mkdir(parents=True)
    for file in source.iterdir():
        content = file.read_bytes()
        if file.name == "dataset_info.json":
            content = content.replace(b"array_record", b"tfrecord")
        (target / file.name.replace("array_record", "tfrecord")).write_bytes(content)
    with pytest.raises(DataError, match=r"as tfrecord, which has no random access.*Expected array_record.*tfds.load"):
        tfds("animals", "train", data_dir=tmp_path)


@pytest.fixture
def known() -> Iterator[Callable[[Any], None]]:
    """Register a builder in TFDS for one test."""
    names = []

    def know(builder: Any) -> None:
        registered._DATASET_REGISTRY[builder.name] = builder
        names.append(builder.name)

    yield know
    for name in names:
        del registered._DATASET_REGISTRY[name]


def test_a_known_dataset_is_prepared_only_on_request(known: Callable[[Any], None], tmp_path: Path) -> None:
    known(builder_class("zoo", {"photo": PHOTO, "kind": KIND}))
    with pytest.raises(DataError, match=r"resfit.data.tfds\('zoo', ..., data_dir=.*, download=True\)"):
        tfds("zoo", "train", data_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []
    for _ in range(2):  # the second time it is prepared
        source = tfds("zoo", "train", data_dir=tmp_path, download=True)
        assert Counter(rows_of(IndexedBatches(source, Geometry(5)).epoch(0))) == EVERY_ROW


def test_preparing_that_needs_tensorflow_says_so(
    known: Callable[[Any], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The builder returns arrays, as the official mnist and cifar10 do."""

    def arrays(row: int, columns: Mapping[str, Any]) -> dict[str, Any]:
        return {"photo": np.asarray(picture(row))[..., None], "kind": 0}

    monkeypatch.setitem(sys.modules, "tensorflow", None)
    known(builder_class("zoo", {"photo": PHOTO, "kind": KIND}, make=arrays))
    with pytest.raises(
        MissingPackageError, match=r"Preparing 'zoo' needs TensorFlow.*reading it does not.*tfds.builder..zoo"
    ):
        tfds("zoo", "train", data_dir=tmp_path, download=True)


@pytest.mark.parametrize("package", ["tensorflow_datasets", "array_record.python.array_record_data_source"])
def test_a_missing_package_is_named(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackageError, match=rf"{package.partition('.')[0]}.*pip install 'resfit\[tfds\]'"):
        tfds("animals", "train")


# --- in fit -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_fit_on_tfds_is_fit_on_the_same_arrays(animals: Path) -> None:
    train, test = (tfds("animals", split, data_dir=animals) for split in ("train", "test"))
    x, y, _ = train.take(slice(0, len(train)))
    raw = [
        tensorflow_datasets.data_source("animals", split=split, data_dir=animals, download=False)
        for split in ("train", "test")
    ]
    losses = []
    for data, validation in (
        ((x, y), test.take(slice(0, 5))[:2]),
        ((train,), test),
        ((raw[0],), raw[1]),
    ):
        model = helpers.compiled(helpers.PlainNet(rngs=helpers.nnx.Rngs(0)))
        history = model.fit(*data, batch_size=8, epochs=2, validation_data=validation, verbose=0)
        losses.append([history.history["loss"], history.history["val_loss"]])
    assert losses[0] == losses[1] == losses[2]


def test_evaluate_and_predict_accept_tfds(animals: Path) -> None:
    source = tfds("animals", "train", data_dir=animals)
    x, y, _ = source.take(slice(0, ROWS))
    model = helpers.compiled(helpers.PlainNet(rngs=helpers.nnx.Rngs(0)))
    assert model.evaluate(source, batch_size=8, verbose=0) == model.evaluate(x, y, batch_size=8, verbose=0)
    np.testing.assert_array_equal(
        model.predict(source, batch_size=8, verbose=0), model.predict(x, batch_size=8, verbose=0)
    )


@pytest.mark.parametrize("name", ["mnist", "cifar10", "cifar100"])
def test_official_datasets_have_the_expected_columns(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test uses the mock data of TFDS, whose `__getitems__` lacks an argument in 4.9.10."""
    monkeypatch.setattr(mocking, "_getitems", lambda record_keys, generator: [generator[key] for key in record_keys])
    with tensorflow_datasets.testing.mock_data(num_examples=7):
        source = tfds(name, "train")
        x, y, _ = source.take(slice(0, 7))
        assert len(source) == 7
        assert x.shape == (7, 28, 28, 1) if name == "mnist" else x.shape == (7, 32, 32, 3)
        assert y.max() < len(source.classes or ()) == (100 if name == "cifar100" else 10)
        assert isinstance(as_batches(source, geometry=Geometry(4)), IndexedBatches)


# --- local builders ---------------------------------------------------------------------------------------------------


@pytest.fixture
def small_originals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, dict[str, np.ndarray]]:
    """Write a folder with IDX files of 30 and 10 images, and accept it in place of the real ones."""
    module = importlib.import_module("resfit.data.datasets.load")
    for name in ("mnist", "fashion_mnist"):
        monkeypatch.setitem(module._EXPECTED, name, (30, 10, 10))
    return tmp_path / "originals", originals.write_idx(tmp_path / "originals")


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_original_files_become_the_official_dataset(
    name: str, small_originals: tuple[Path, dict[str, np.ndarray]], tmp_path: Path
) -> None:
    folder, written = small_originals
    place = prepare_tfds(name, data_dir=tmp_path / "tfds", path=folder)
    assert place.parent == tmp_path / "tfds" / name
    for split, part in (("train", "train"), ("test", "t10k")):
        # With only TFDS, as in any other program.
        plain = tensorflow_datasets.data_source(name, split=split, data_dir=tmp_path / "tfds", download=False)
        found = Counter((one["image"].tobytes(), one["label"]) for one in plain)
        images, labels = written[f"{part}-images-idx3-ubyte.gz"], written[f"{part}-labels-idx1-ubyte.gz"]
        assert found == Counter((image.tobytes(), label) for image, label in zip(images, labels, strict=True))
        assert plain[0]["image"].shape == (28, 28, 1)
        official = tensorflow_datasets.builder_cls(name)(data_dir=tmp_path / "tfds").info
        assert plain.dataset_info.features["label"].names == official.features["label"].names
        assert plain.dataset_info.full_name == official.full_name
    assert ("Ankle boot" in (tfds(name, "train", data_dir=tmp_path / "tfds").classes or ())) is (name != "mnist")


@pytest.mark.representatives("mnist_5k")
@pytest.mark.parametrize("name", ["digits", "mnist_5k"])
def test_bundled_datasets_become_tfds_datasets(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = resfit.data.load("digits")
    if name == "mnist_5k":  # reading the real one takes seconds, and tests/data/datasets/test_load.py does it
        whole = tuple((images[:50].repeat(4, 1)[:, :28].repeat(4, 2)[:, :, :28], y[:50]) for images, y in whole)
        monkeypatch.setattr(importlib.import_module("resfit.data.datasets.builders"), "load", lambda *_: whole)
    prepare_tfds(name, data_dir=tmp_path)
    for split, (images, labels) in zip(("train", "test"), whole, strict=True):
        source = tfds(name, split, data_dir=tmp_path)
        x, y, _ = source.take(slice(0, len(source)))
        found = Counter((image.tobytes(), int(label)) for image, label in zip(x, y, strict=True))
        assert found == Counter((image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True))
        assert source.classes == tuple("0123456789")


def test_a_prepared_dataset_is_not_changed(small_originals: tuple[Path, Any], tmp_path: Path) -> None:
    place = prepare_tfds("mnist", data_dir=tmp_path / "tfds", path=small_originals[0])
    before = {file.name: file.stat().st_mtime_ns for file in place.iterdir()}
    assert prepare_tfds("mnist", data_dir=tmp_path / "tfds", path=tmp_path / "nowhere") == place
    assert {file.name: file.stat().st_mtime_ns for file in place.iterdir()} == before


def test_a_prepared_dataset_is_checked(small_originals: tuple[Path, Any], tmp_path: Path) -> None:
    place = prepare_tfds("mnist", data_dir=tmp_path / "tfds", path=small_originals[0])
    info = place / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(DataError, match="as tfrecord"):
        prepare_tfds("mnist", data_dir=tmp_path / "tfds", path=small_originals[0])


def test_bad_originals_prepare_nothing(small_originals: tuple[Path, Any], tmp_path: Path) -> None:
    (small_originals[0] / "t10k-labels-idx1-ubyte.gz").write_bytes(b"?")
    with pytest.raises(DataError, match="damaged"):
        prepare_tfds("mnist", data_dir=tmp_path / "tfds", path=small_originals[0])
    with pytest.raises(DataError, match="not prepared"):
        tfds("mnist", "train", data_dir=tmp_path / "tfds")


def test_preparing_prints_nothing(
    small_originals: tuple[Path, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare_tfds("mnist", data_dir=tmp_path / "tfds", path=small_originals[0])
    assert capsys.readouterr().out == ""


def test_other_names_raise_and_list_the_known_ones() -> None:
    with pytest.raises(DataError, match=r"'cifar10' cannot.*Expected one of mnist, fashion_mnist, digits, mnist_5k"):
        prepare_tfds("cifar10")
