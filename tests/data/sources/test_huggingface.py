"""Hugging Face datasets, map-style and streaming, on parquet files and images made by the test."""

import io
import itertools
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import jax
import numpy as np
import pytest
from datasets import Array3D, ClassLabel, Dataset, DatasetDict, Features, Image, IterableDataset, Value
from PIL import Image as Pillow

from resfit.callbacks import Callback
from resfit.data import Geometry, as_batches, huggingface
from resfit.data.streaming import retry
from resfit.errors import DataError, LabelError
from tests.helpers import assert_same, compiled, fit

datasets.disable_progress_bars()

ROWS = 37
SHARDS = 4
FEATURES = Features(img=Image(), digit=ClassLabel(num_classes=3))


def picture(number: int) -> np.ndarray:
    """Return an (8, 8) uint8 image whose first pixel is the number."""
    pixels = np.random.default_rng(number).integers(0, 255, (8, 8), dtype=np.uint8)
    pixels[0, 0] = number
    return pixels


def png(pixels: np.ndarray, mode: str | None = None) -> bytes:
    file = io.BytesIO()
    image = Pillow.fromarray(pixels)
    (image if mode is None else image.convert(mode)).save(file, "PNG")
    return file.getvalue()


def table(rows: int = ROWS, features: Features = FEATURES, **changed: dict[int, Any]) -> Dataset:
    """Return a dataset of numbered images; `changed` replaces entries of a column."""
    columns: dict[str, list[Any]] = {
        "img": [{"bytes": png(picture(i)), "path": None} for i in range(rows)],
        "digit": [i % 3 for i in range(rows)],
    }
    for name, entries in changed.items():
        for row, value in entries.items():
            columns[name][row] = value
    return Dataset.from_dict(columns, features=features)


def parquet(folder: Path, whole: Dataset | None = None, shards: int = SHARDS, **arguments: Any) -> IterableDataset:
    whole = table() if whole is None else whole
    for i in range(shards):
        whole.shard(shards, i).to_parquet(folder / f"train-{i}.parquet")
    return datasets.load_dataset(
        "parquet", data_files={"train": str(folder / "train-*.parquet")}, split="train", streaming=True,
        cache_dir=str(folder / "cache"), **arguments,
    )  # fmt: skip


@pytest.fixture
def stream(tmp_path: Path) -> IterableDataset:
    return parquet(tmp_path)


KINDS = ["table", "stream"]


@pytest.fixture(params=KINDS)
def either(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Return the same rows, map-style or streaming."""
    return table() if request.param == "table" else parquet(tmp_path)


def batches(data: Any, batch_size: int = 8, seed: int | None = 0, options: Any = None, **geometry: Any) -> Any:
    data = data if options is None else huggingface(data, **options)
    return as_batches(data, geometry=Geometry(batch_size, seed=seed, **geometry))


def numbers(epoch: Iterator[Any]) -> list[list[int]]:
    return [batch.x[:, 0, 0, 0].tolist() for batch in epoch]


def flat(lists: list[list[int]]) -> list[int]:
    return list(itertools.chain(*lists))


# --- both kinds -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [0, 2])
def test_every_row_comes_once_in_an_order_of_seed_and_epoch(either: Any, threads: int) -> None:
    made = batches(either, options={"threads": threads})
    epochs = [numbers(made.epoch(epoch)) for epoch in range(3)]
    for epoch in epochs:
        assert Counter(flat(epoch)) == Counter(range(ROWS))
        assert [len(batch) for batch in epoch] == [8, 8, 8, 8, 5]
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert numbers(batches(either, options={"threads": 1}).epoch(1)) == epochs[1]
    assert numbers(batches(either, seed=1).epoch(1)) != epochs[1]
    assert (made.steps, made.examples) == (5, ROWS)


@pytest.mark.parametrize("threads", [0, 2])
def test_an_epoch_can_start_at_any_batch(either: Any, threads: int) -> None:
    made = batches(either, options={"threads": threads, "window": 10})
    whole = list(made.epoch(1))
    for start in range(len(whole) + 1):
        assert_same([batch[:3] for batch in made.epoch(1, start)], [batch[:3] for batch in whole[start:]])


def test_images_and_labels_are_those_of_the_rows(either: Any) -> None:
    for batch in batches(either).epoch(0):
        assert (batch.x.shape[1:], batch.x.dtype, batch.y.dtype) == ((8, 8, 1), np.uint8, np.int32)
        for x, y in zip(batch.x, batch.y, strict=True):
            number = int(x[0, 0, 0])
            np.testing.assert_array_equal(x[..., 0], picture(number))
            assert y == number % 3


def test_evaluation_keeps_the_order_and_pads_the_last_batch(either: Any) -> None:
    made = list(batches(either, seed=None, pad=True).epoch(0))
    assert flat(numbers(iter(made)))[:ROWS] == list(range(ROWS))
    assert [batch.size for batch in made] == [8, 8, 8, 8, 5]
    assert made[-1].mask.tolist() == [True] * 5 + [False] * 3


@pytest.mark.parametrize(
    ("mode", "options", "shape", "first"),
    [
        ("RGB", {}, (8, 8, 3), [7, 7, 7]),
        ("RGB", {"mode": "L"}, (8, 8, 1), [7]),
        ("L", {"mode": "RGB"}, (8, 8, 3), [7, 7, 7]),
        ("P", {}, (8, 8, 3), [7, 7, 7]),  # not the indices of the palette
        ("RGBA", {}, (8, 8, 3), [7, 7, 7]),
        ("1", {}, (8, 8, 1), [0]),
        ("L", {"size": 4}, (4, 4, 1), None),
        ("L", {"size": (6, 4)}, (6, 4, 1), None),
        ("L", {"size": 4, "crop": "center"}, (4, 4, 1), None),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_images_have_the_requested_size_and_mode(
    kind: str, mode: str, options: Any, shape: Any, first: Any, tmp_path: Path
) -> None:
    pixels = np.full((8, 8), 7, np.uint8)
    whole = table(2, img={row: {"bytes": png(pixels, mode), "path": None} for row in range(2)})
    (batch,) = batches(whole if kind == "table" else parquet(tmp_path, whole, 1), options=options).epoch(0)
    assert batch.x.shape[1:] == shape
    if first is not None:
        assert batch.x[0, 0, 0].tolist() == first


def test_a_column_with_a_mode_keeps_its_mode() -> None:
    whole = table(3).cast_column("img", Image(mode="RGB"))
    assert next(batches(whole).epoch(0)).x.shape == (3, 8, 8, 3)


def test_images_of_several_sizes_raise_with_size_as_remedy(tmp_path: Path) -> None:
    whole = table(6, img={3: {"bytes": png(np.zeros((5, 9), np.uint8)), "path": None}})
    for data in (whole, parquet(tmp_path, whole, 1)):
        with pytest.raises(DataError, match=r"Pass size=n or size=\(height, width\)"):
            list(batches(data).epoch(0))
        assert next(batches(data, options={"size": 8}).epoch(0)).x.shape == (6, 8, 8, 1)


def test_arrays_keep_their_dtype(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (10, 4, 4, 3), dtype=np.uint8)
    features = Features(pixels=Array3D((4, 4, 3), "uint8"), y=Value("int64"))
    whole = Dataset.from_dict({"pixels": pixels, "y": range(10)}, features=features)
    for data in (whole, whole.to_iterable_dataset(2), parquet(tmp_path, whole, 2)):
        for batch in batches(data).epoch(0):
            assert batch.x.dtype == np.uint8
            np.testing.assert_array_equal(batch.x, pixels[batch.y])


def test_floating_point_labels_and_soft_labels_pass(tmp_path: Path) -> None:
    soft = np.random.default_rng(0).random((6, 3)).astype(np.float32)
    whole = table(6).add_column("soft", list(soft)).add_column("age", [0.5] * 6)
    for data in (whole, parquet(tmp_path, whole, 1)):
        (batch,) = batches(data, seed=None, options={"label": "soft"}).epoch(0)
        assert batch.y.dtype == np.float32
        np.testing.assert_allclose(batch.y, soft)
        (batch,) = batches(data, options={"label": "age"}).epoch(0)
        assert batch.y.dtype == np.float64


def test_only_images_have_no_labels(either: Any) -> None:
    alone = either.select_columns(["img"])
    assert next(batches(alone).epoch(0)).y is None
    model = compiled()
    assert model.predict(alone, verbose=0).shape == (ROWS, 3)
    with pytest.raises(LabelError, match="There are no labels"):
        fit(model, alone)


@pytest.mark.representatives("stream")
def test_a_model_trains_evaluates_and_predicts(either: Any) -> None:
    model = compiled()
    history = fit(model, either, epochs=2, validation_data=either)
    assert len(history.history["val_accuracy"]) == 2
    assert model.evaluate(either, verbose=0, return_dict=True).keys() == {"loss", "accuracy"}
    x = np.stack([picture(i) for i in range(ROWS)])[..., None]
    np.testing.assert_allclose(
        model.predict(either, batch_size=8, verbose=0), model.predict(x, batch_size=8, verbose=0), rtol=1e-5
    )


def test_several_splits_passed_to_fit_are_named() -> None:
    with pytest.raises(DataError, match="of several splits: 'train', 'test'"):
        compiled().fit(DatasetDict(train=table(), test=table()), verbose=0)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda: DatasetDict(train=table(2), test=table(2)), "of several splits: 'train', 'test'"),
        (lambda: [1, 2], "Expected a datasets.Dataset or datasets.IterableDataset, got a list"),
        (lambda: table(2)["img"], "got a Column"),
    ],
)
def test_values_that_are_not_a_split_raise(data: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        huggingface(data())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop": "corner", "size": 4}, "Expected crop to be None, 'random' or 'center', got 'corner'"),
        ({"size": 0}, "Expected size to be a number of pixels"),
        ({"crop": "center"}, "without size"),
        ({"mode": "HSV"}, "Expected mode to be one of L, RGB, RGBA or None, got 'HSV'"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        huggingface(table(2), **options)


@pytest.mark.parametrize("kind", KINDS)
def test_random_crops_depend_on_seed_epoch_and_row_only(kind: str, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (32, 48, 3), dtype=np.uint8)
    whole = table(12, img={row: {"bytes": png(noise), "path": None} for row in range(12)})
    data = whole if kind == "table" else parquet(tmp_path, whole, 3)

    def images(threads: int, epoch: int, start: int = 0) -> np.ndarray:
        made = batches(data, 4, options={"size": 8, "crop": "random", "threads": threads})
        return np.concatenate([batch.x for batch in made.epoch(epoch, start)])

    first = images(0, 1)
    assert len({image.tobytes() for image in first}) == 12  # each row its own
    np.testing.assert_array_equal(images(3, 1), first)
    np.testing.assert_array_equal(images(1, 1, start=2), first[8:])
    assert not {image.tobytes() for image in images(0, 2)} & {image.tobytes() for image in first}
    with pytest.raises(DataError, match="Use crop='center' for validation"):
        list(batches(data, seed=None, options={"size": 8, "crop": "random"}).epoch(0))


def test_arrays_are_not_resized() -> None:
    features = Features(pixels=Array3D((4, 4, 3), "uint8"))
    whole = Dataset.from_dict({"pixels": np.zeros((2, 4, 4, 3), np.uint8)}, features=features)
    with pytest.raises(DataError, match=r"The images are arrays \(type Array3D\)"):
        huggingface(whole, size=8)


# --- map-style --------------------------------------------------------------------------------------------------------


def test_a_selection_has_the_selected_rows() -> None:
    chosen = table().shuffle(seed=1).select(range(5, 25))
    expected = [int(np.asarray(row["img"])[0, 0]) for row in chosen]
    made = batches(chosen, seed=None)
    assert flat(numbers(made.epoch(0))) == expected
    assert made.labels.tolist() == [number % 3 for number in expected]


def test_a_format_is_ignored_and_a_transform_raises() -> None:
    assert next(batches(table(4).with_format("numpy")).epoch(0)).x.shape == (4, 8, 8, 1)
    with pytest.raises(DataError, match="has a custom transform"):
        huggingface(table(4).with_transform(lambda rows: rows))


def test_an_image_that_does_not_decode_is_named_by_its_row() -> None:
    whole = png(picture(0))
    for content, message in ((whole[:-30], "could not be read"), (b"text", "is not an image file")):
        data = table(9, img={6: {"bytes": content, "path": None}})
        with pytest.raises(DataError, match=rf"Row 6 of the dataset cannot be used: its image \(\d+ bytes\) {message}"):
            list(batches(data).epoch(0))
    with pytest.raises(DataError, match="Row 2 of the dataset cannot be used: its image is missing"):
        list(batches(table(9, img={2: None})).epoch(0))


def test_a_missing_label_raises_before_training() -> None:
    with pytest.raises(DataError, match="The column 'digit' has no label for 1 of 9 examples"):
        huggingface(table(9, digit={4: None}))


def test_an_empty_split_raises() -> None:
    with pytest.raises(DataError, match="holds no examples"):
        batches(table(3).select([]))


@pytest.mark.slow
def test_classes_can_be_weighed() -> None:
    history = fit(compiled(), table(12), class_weight={0: 2.0})
    assert np.isfinite(history.history["loss"]).all()


# --- streams ----------------------------------------------------------------------------------------------------------


def test_the_rows_of_parquet_files_are_known_before_reading(stream: IterableDataset) -> None:
    made = batches(stream)
    assert (made.steps, made.examples) == (5, ROWS)


def renumbered(row: dict[str, Any]) -> dict[str, Any]:
    return {"digit": (row["digit"] + 1) % 3}


@pytest.mark.representatives("<lambda>-37-4_0", "<lambda>-None-1_0", "<lambda>-37-1")
@pytest.mark.parametrize(
    ("change", "examples", "shards"),
    [
        (lambda s: s.map(renumbered), ROWS, SHARDS),
        (lambda s: s.rename_column("digit", "y"), ROWS, SHARDS),
        (lambda s: s.filter(lambda row: row["digit"] > 0), None, SHARDS),
        (lambda s: s.map(lambda rows: rows, batched=True), None, SHARDS),
        (lambda s: s.take(20), None, 1),
        (lambda s: s.skip(20), None, 1),
        (lambda s: datasets.concatenate_datasets([s, s]), None, 1),
        (lambda s: s.repeat(2), None, 1),
        (lambda s: s.map(lambda row, i: row, with_indices=True), ROWS, 1),
    ],
)
def test_steps_of_the_stream_itself_are_respected(
    change: Any, examples: int | None, shards: int, tmp_path: Path
) -> None:
    changed = change(parquet(tmp_path))
    expected = Counter(int(np.asarray(row["img"])[0, 0]) for row in changed)
    data = huggingface(changed)
    assert len(data._shards) == shards
    made = data.batches(Geometry(8, seed=0))
    assert Counter(flat(numbers(made.epoch(0)))) == expected
    if shards > 1:
        assert made.examples == examples


def test_filters_of_the_files_do_not_count_as_lost_rows(tmp_path: Path) -> None:
    made = batches(parquet(tmp_path, filters=[("digit", "==", 1)]))
    assert made.examples is None
    assert Counter(flat(numbers(made.epoch(0)))) == Counter(range(1, ROWS, 3))


CARD = """---
dataset_info:
  features:
  - {name: img, dtype: image}
  - {name: digit, dtype: {class_label: {names: {"0": zero, "1": one, "2": two}}}}
  splits:
  - {name: train, num_bytes: 1, num_examples: ROWS}
configs:
- config_name: default
  data_files: [{split: train, path: train-*}]
---
"""


def repository(folder: Path, promised: int) -> IterableDataset:
    """Write a repository as on the Hub, with a card that has the number of rows."""
    parquet(folder / "repository")
    (folder / "repository" / "README.md").write_text(CARD.replace("ROWS", str(promised)))
    return datasets.load_dataset(
        str(folder / "repository"), split="train", streaming=True, cache_dir=str(folder / "cache")
    )


def test_a_file_missing_from_a_repository_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "repository").mkdir()
    data = repository(tmp_path, ROWS)
    assert batches(data).examples == ROWS
    with pytest.raises(DataError, match=rf"split 'train' promise {ROWS + 3} rows, but its 4 files hold {ROWS}"):
        batches(repository(tmp_path, ROWS + 3))


def test_skip_and_take_of_a_split_have_no_common_rows(stream: IterableDataset) -> None:
    """By shard, skip(10) and take(10) would select other rows than in sequence."""
    train, held_out = batches(stream.skip(10)), batches(stream.take(10), seed=None)
    assert sorted(flat(numbers(train.epoch(0)))) == list(range(10, ROWS))
    assert flat(numbers(held_out.epoch(0))) == list(range(10))


@pytest.mark.slow
def test_two_readers_of_one_stream_do_not_disturb_each_other(tmp_path: Path) -> None:
    data = parquet(tmp_path, table(250))
    train, held_out = (batches(part, seed=None, options={"threads": 0}) for part in (data.skip(10), data.take(200)))
    seen = []
    for batch in train.epoch(0):
        seen += batch.x[:, 0, 0, 0].tolist()
        assert flat(numbers(held_out.epoch(0))) == list(range(200))
    assert seen == list(range(10, 250))


def test_a_shuffle_buffer_raises(stream: IterableDataset) -> None:
    for shuffled in (stream.shuffle(seed=0, buffer_size=5), stream.shuffle(seed=0).map(renumbered)):
        with pytest.raises(DataError, match="has its own shuffle buffer"):
            batches(shuffled)


def test_a_stream_from_a_map_style_dataset_knows_its_rows() -> None:
    made = batches(table().to_iterable_dataset(3))
    assert made.examples == ROWS
    assert Counter(flat(numbers(made.epoch(0)))) == Counter(range(ROWS))
    filtered = batches(table().filter(lambda row: row["digit"] == 1).to_iterable_dataset(2))
    assert filtered.examples == len(flat(numbers(filtered.epoch(0)))) == len(range(1, ROWS, 3))


@pytest.mark.parametrize("pixels", ["Pillow", "NumPy"])
def test_a_generator_without_types_is_read_by_its_first_row(pixels: str) -> None:
    def rows(shards: list[int]) -> Iterator[dict[str, Any]]:
        for shard in shards:
            for i in range(10 * shard, 10 * shard + 10):
                yield {"x": Pillow.fromarray(picture(i)) if pixels == "Pillow" else picture(i), "y": i % 3}

    data = IterableDataset.from_generator(rows, gen_kwargs={"shards": [0, 1, 2]})
    made = batches(data)
    assert made.steps is None
    assert Counter(flat(numbers(made.epoch(0)))) == Counter(range(30))


def test_a_folder_of_images_streams(tmp_path: Path) -> None:
    for i in range(6):
        (tmp_path / "images" / f"class{i % 2}").mkdir(parents=True, exist_ok=True)
        Pillow.fromarray(picture(i)).save(tmp_path / "images" / f"class{i % 2}" / f"{i}.png")
    data = datasets.load_dataset(
        "imagefolder", data_dir=str(tmp_path / "images"), split="train", streaming=True, cache_dir=str(tmp_path / "c")
    )
    (batch,) = batches(data).epoch(0)
    assert {(int(x[0, 0, 0]), int(y)) for x, y in zip(batch.x, batch.y, strict=True)} == {(i, i % 2) for i in range(6)}


def test_processes_share_the_files(tmp_path: Path) -> None:
    data = parquet(tmp_path)
    parts = [list(batches(data, pad=True, shard=(index, 2)).epoch(0)) for index in range(2)]
    assert Counter(flat([batch.x[batch.mask, 0, 0, 0].tolist() for part in parts for batch in part])) == Counter(
        range(ROWS)
    )
    assert [len(part) for part in parts] == [5, 5]


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    data = parquet(tmp_path)
    made = batches(data, seed=None, options={"retries": 0})
    broken = tmp_path / "train-2.parquet"
    broken.write_bytes(broken.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"train-2.parquet could not be read beyond row 0(?s:.*) 19 rows of epoch 0"):
        numbers(made.epoch(0))


def test_a_file_that_lost_rows_raises(tmp_path: Path) -> None:
    data = parquet(tmp_path)
    made = batches(data)
    table(3).to_parquet(tmp_path / "train-1.parquet")
    with pytest.raises(DataError, match=r"train-1.parquet promised 9 rows and ended after 3"):
        numbers(made.epoch(0))


def test_metadata_with_another_number_of_rows_raise() -> None:
    """If the files have no row counts, only the metadata of the split give the number of rows."""
    data = IterableDataset.from_generator(lambda: iter(table()), features=FEATURES)
    data.info.splits = datasets.SplitDict({"train": datasets.SplitInfo("train", num_examples=ROWS + 3)})
    made = batches(data)
    assert made.examples == ROWS + 3
    with pytest.raises(DataError, match=f"promised {ROWS + 3} rows and yielded {ROWS}"):
        numbers(made.epoch(0))


# --- mistakes of the tutorial's streaming script ----------------------------------------------------------------------


def test_a_wrong_column_name_raises_before_any_step(either: Any) -> None:
    with pytest.raises(
        DataError, match=r"no column 'image' for image='image'. Expected one of its columns: 'img' \(Image\), 'digit'"
    ):
        huggingface(either, image="image")


def test_an_error_of_the_stream_is_raised_during_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """The script guarded only its step, so a network error in the iterator ended the run."""
    monkeypatch.setattr(retry, "FIRST_PAUSE", 1e-4)
    failures = [ConnectionError("reset by peer"), TimeoutError("too slow")]

    def rows(fail: bool) -> Iterator[dict[str, Any]]:
        for i, row in enumerate(table()):
            if fail and i == 20 and failures:
                raise failures.pop()
            yield row

    calm, flaky = (
        IterableDataset.from_generator(rows, features=FEATURES, gen_kwargs={"fail": fail}) for fail in (False, True)
    )
    models = []
    for data in (calm, flaky):
        model = compiled()
        fit(model, data)
        models.append(model.get_weights())
    assert failures == []
    assert_same(*models)


@pytest.mark.slow
def test_augmentation_touches_training_only_and_is_seeded(stream: IterableDataset) -> None:
    def to_zero(key: jax.Array, x: Any, y: Any) -> Any:
        return x * 0, y

    plain, zeroed = compiled(), compiled(augment=to_zero)
    assert zeroed.evaluate(stream, verbose=0) == plain.evaluate(stream, verbose=0)

    def noise(key: jax.Array, x: Any, y: Any) -> Any:
        return x + jax.random.randint(key, x.shape, 0, 20).astype(x.dtype), y

    runs = []
    for _ in range(2):
        model = compiled(augment=noise)
        fit(model, stream)
        runs.append(model.get_weights())
    assert_same(*runs)


def test_the_last_partial_batch_is_trained_on(either: Any) -> None:
    seen = []

    class Watcher(Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            seen.append(batch)

    fit(compiled(), either, callbacks=[Watcher()])
    assert len(seen) == 5  # 37 rows in batches of 8


@pytest.mark.representatives("broken1")
@pytest.mark.parametrize(
    "broken", [{"img": {5: None}}, {"img": {5: {"bytes": b"x", "path": None}}}, {"digit": {5: None}}]
)
def test_broken_records_are_counted_and_bounded(broken: Any, tmp_path: Path) -> None:
    data = parquet(tmp_path, table(**broken))
    with pytest.raises(DataError, match=r"Row 5 of .*train-0.parquet cannot be used: its .*max_bad_records=0"):
        fit(compiled(), data)
    made = batches(data, options={"max_bad_records": 1})
    assert Counter(flat(numbers(made.epoch(0)))) == Counter(set(range(ROWS)) - {5})
    assert made.report == {"bad_records": 1}
    whole = numbers(made.epoch(1))
    for start in range(len(whole) + 1):
        assert numbers(made.epoch(1, start)) == whole[start:]
    history = fit(compiled(), huggingface(data, max_bad_records=1), epochs=2)
    assert history.history["bad_records"] == [1, 1]


def test_a_stream_without_usable_records_raises(tmp_path: Path) -> None:
    data = parquet(tmp_path, table(img=dict.fromkeys(range(ROWS), None)))
    with pytest.raises(
        DataError, match=f"yielded no usable example in epoch 0: {ROWS} rows were read, {ROWS} of them bad"
    ):
        fit(compiled(), huggingface(data, max_bad_records=ROWS))
    with pytest.raises(DataError, match="has no examples"):
        batches(IterableDataset.from_generator(lambda: iter(())))


def test_no_thread_remains(stream: IterableDataset) -> None:
    epoch = batches(stream, options={"threads": 2}).epoch(0)
    next(epoch)
    epoch.close()
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("resfit")] == []
