"""With every kind of data, a resumed run gets the remaining batches in the order of an uninterrupted run."""

import functools
import itertools
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import resfit
from resfit.callbacks import Callback
from resfit.data import Epochs, Geometry, as_batches
from resfit.data import decode as decoding
from resfit.data.sources import files as files_module
from resfit.data.sources import pictures
from resfit.data.sources.tfds_source import TfdsSource
from resfit.errors import DataError, ResumeError
from resfit.trainer.checkpoint.store import CheckpointStore
from tests import levels
from tests.faults import kinds, runs
from tests.faults.kinds import KINDS, READ, X, Y
from tests.helpers import PlainNet, assert_same

VALIDATION = X[:9], Y[:9]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("files")
    kinds.write(path)
    return path


# --- without a trainer: every position --------------------------------------------------------------------------------


def begin(kind: str, files: Path) -> Epochs:
    arguments = KINDS[kind](files)
    x, y, weight = (arguments.pop(name, None) for name in ("x", "y", "sample_weight"))
    steps, geometry = arguments.pop("steps_per_epoch", None), Geometry(arguments.pop("batch_size", 32), seed=0)
    return Epochs(as_batches(x, y, weight, geometry=geometry, **arguments), steps)


def walk(data: Epochs, length: int, done: int = 0) -> Iterator[tuple[Any, bool, Any]]:
    """Return each batch of two epochs from a position, with the position that `fit` saves after it."""
    while done < 2 * length:
        for batch in data.next(done % length):
            done += 1
            yield batch, True, data.position(inside=True)
        yield None, False, data.position(inside=False)


@pytest.mark.representatives(
    "arrays",
    "arrays of a file",
    "weighted arrays",
    "a source",
    "a folder",
    "TFDS",
    "a stream",
    "a stream without lengths",
    "a stream with bad records",
    "MapDataset of Grain",
    "a list of batches",
    "a function of batches",
    "a loader with state",
    "a loader with state, by class",
)
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_batches_follow_from_every_position(kind: str, files: Path) -> None:
    data = begin(kind, files)
    length = KINDS[kind](files).get("steps_per_epoch", 3)
    whole = list(walk(data, length))
    batches = [batch for batch, _, _ in whole if batch is not None]
    assert len(batches) == 2 * length
    done = 0
    for batch, inside, position in whole:
        done += batch is not None
        rest = begin(kind, files)
        rest.seek(**position)
        if inside and done % length == 0:  # the last batch is done, the end of the epoch is not
            assert list(rest.next(length)) == []
        assert_same([found for found, _, _ in walk(rest, length, done) if found is not None], batches[done:])


def test_each_kind_of_data_has_distinct_shuffled_rows(files: Path) -> None:
    """With equal or unshuffled rows, a wrong position would look right."""
    for kind in KINDS:
        length = KINDS[kind](files).get("steps_per_epoch", 3)
        batches = [batch for batch, _, _ in walk(begin(kind, files), length) if batch is not None]
        for one, other in itertools.pairwise(batches):
            assert not np.array_equal(one.x, other.x), kind
        first = np.concatenate([np.asarray(batch.x) for batch in batches[:2]])
        if "data.load" not in kind:
            rows = first[:, 0, 0, 0].tolist()
            assert rows != sorted(rows), kind


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Record also what resfit itself decodes."""

    def noting(decode: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *arguments: READ.append(0) or decode(*arguments)  # type: ignore[func-returns-value]

    for module in (files_module, pictures):
        monkeypatch.setattr(module, "decode", noting(decoding.decode))
    take = TfdsSource.take
    monkeypatch.setattr(TfdsSource, "take", lambda self, rows: READ.extend(rows.tolist()) or take(self, rows))


# Kinds that read earlier batches again.
READ_AGAIN = {
    "a stream with bad records": "which records are bad shows when they are decoded",
    "DataLoader of Grain, no name": "its state names its data source by an address",
    "a function of batches": "nobody else can skip",
    "a loader that is told the epoch": "nobody else can skip",
    "a generator": "nobody else can skip",
}
NOT_READ = {kind for kind in KINDS if kind.startswith(("arrays", "weighted", "a list"))}  # in memory already


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - NOT_READ))
def test_data_with_a_known_position_decode_nothing_again(kind: str, files: Path, counted: None) -> None:
    begun = begin(kind, files)
    epoch = begun.next()
    two = list(itertools.islice(epoch, 2))
    position = begun.position(inside=True)
    assert list(epoch)  # and its threads have ended
    rest = begin(kind, files)
    READ.clear()
    rest.seek(**position)
    (batch,) = itertools.islice(rest.next(2), 1)  # the last one of the pass
    again = len(READ) - batch.size
    assert again == (sum(one.size for one in two) if kind in READ_AGAIN else 0)


@pytest.mark.parametrize(
    "kind",
    ["a source", "a folder", "TFDS", "Hugging Face", "a stream", "MapDataset of Grain", "IterDataset of Grain"],
)
def test_batches_that_threads_read_ahead_count_as_unread(kind: str, files: Path, counted: None) -> None:
    READ.clear()
    data = begin(kind, files)
    epoch = data.next()
    next(epoch)
    until = time.monotonic() + 20
    while len(READ) <= runs.BATCH and time.monotonic() < until:
        time.sleep(0.001)
    assert len(READ) > runs.BATCH
    position = data.position(inside=True)
    rest = begin(kind, files)
    rest.seek(**position)
    assert_same(list(rest.next(1)), list(epoch))


# --- in a run ---------------------------------------------------------------------------------------------------------


def run(kind: str, files: Path, path: Path, *extra: Callback, **arguments: Any) -> dict[str, Any]:
    """Fit a new model for two epochs."""
    given = {"validation_data": VALIDATION, "epochs": 2, "every": 100, **KINDS[kind](files), **arguments}
    return runs.run(runs.small(PlainNet), path, *extra, data=dict, **given)


@functools.cache
def whole(kind: str, files: Path, path: Path) -> tuple[dict[str, Any], Path]:
    """Return the results of an uninterrupted run, and its checkpoint after four steps."""
    place = path / kind.replace(" ", "-")
    left = run(kind, files, place, every=4, keep=100)
    checkpoints = CheckpointStore(place, writes=False)
    (saved,) = [
        number
        for number in checkpoints.steps
        for progress in [checkpoints.read(number).facts["progress"]]
        if progress["steps"] == 4 and progress["batch"]
    ]
    return left, place / str(saved)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


def stopped(kind: str, files: Path, shared: Path, path: Path) -> Path:
    """Return the folder of a run that dies after its fourth step; threads may have read further."""
    saved = whole(kind, files, shared)[1]
    shutil.copytree(saved, path / "run" / saved.name)
    return path / "run"


@pytest.mark.representatives("arrays", "a folder", "a stream")
# One kind for each way of finding a position again; the test of every position has all kinds.
@pytest.mark.parametrize(
    "kind",
    levels.only(
        {
            "arrays", "arrays on the device", "a folder", "TFDS", "Hugging Face", "a stream",
            "MapDataset of Grain", "IterDataset of Grain", "a function of batches", "a generator",
            "a loader with state, five steps an epoch",
        },
        KINDS,
    ),
)  # fmt: skip
def test_a_resumed_run_ends_the_same_with_each_kind_of_data(
    kind: str, files: Path, shared: Path, tmp_path: Path
) -> None:
    found = run(kind, files, stopped(kind, files, shared, tmp_path), resume=True)
    assert_same(found, whole(kind, files, shared)[0])


@pytest.mark.slow
def test_a_terminated_run_saves_the_position_of_its_loader(files: Path, shared: Path, tmp_path: Path) -> None:
    kind = "a loader with state"
    for step in (1, 2, 1):
        with runs.stopped(SystemExit):
            run(kind, files, tmp_path, runs.Stops(step, runs.terminate), resume=True)
    assert_same(run(kind, files, tmp_path, resume=True), whole(kind, files, shared)[0])


# --- negative controls ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    levels.only(
        {"arrays", "IterDataset of Grain", "a function of batches"},
        ["arrays", "a folder", "a stream of Hugging Face", "MapDataset of Grain", "IterDataset of Grain",
         "a function of batches", "a loader with state"],
    ),
)  # fmt: skip
def test_the_comparison_detects_a_lost_position(
    kind: str, files: Path, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = stopped(kind, files, shared, tmp_path)
    seek = Epochs.seek
    monkeypatch.setattr(Epochs, "seek", lambda self, passes, **position: seek(self, passes, 0, inside=True))
    found = run(kind, files, path, resume=True)
    with pytest.raises((AssertionError, ValueError), match=r"Mismatch|not equal|structure error"):
        assert_same(found, whole(kind, files, shared)[0])


def test_the_comparison_detects_a_lost_loader_state(
    files: Path, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = stopped("a loader with state", files, shared, tmp_path)
    seek = Epochs.seek
    monkeypatch.setattr(Epochs, "seek", lambda self, *place, **more: seek(self, *place, **{**more, "loader": None}))
    found = run("a loader with state", files, path, resume=True)
    with pytest.raises(AssertionError, match=r"Mismatch|not equal"):
        assert_same(found, whole("a loader with state", files, shared)[0])


# --- other data than before -------------------------------------------------------------------------------------------


def copied(files: Path, path: Path) -> Path:
    shutil.copytree(files / "images", path / "images")
    return path


def renamed(files: Path, path: Path) -> dict[str, Any]:
    (copied(files, path) / "images" / "class0" / "00.png").rename(path / "images" / "class0" / "other.png")
    return KINDS["a folder"](path)


def without_one(files: Path, path: Path) -> dict[str, Any]:
    (copied(files, path) / "images" / "class0" / "00.png").unlink()
    return KINDS["a folder"](path)


def fewer_files(files: Path, path: Path) -> dict[str, Any]:
    data = kinds.parquet(files, "train-[012].parquet")
    return {"x": resfit.data.huggingface(data, window=7, interleave=2), **kinds.CUT}


def noisy(*_: Any) -> dict[str, Any]:
    return {"x": X ^ 1, **kinds.ARRAYS}


# (kind, the data at the resume, the message)
CHANGES: dict[str, tuple[str, Callable[[Path, Path], dict[str, Any]], str]] = {
    "fewer examples": ("arrays", lambda *_: {"x": X[1:], "y": Y[1:], **kinds.CUT}, r"data\.examples was 22, is 21"),
    "other labels": ("arrays", lambda *_: {"x": X, "y": Y[::-1], **kinds.CUT}, r"data\.labels was \d+, is \d+\. Exp"),
    "other pixels": ("arrays", noisy, r"settings: data\.values was \[\d+\], is \[\d+\]\. Exp"),
    "another dtype": (
        "arrays", lambda *_: {"x": X.astype(np.float32), **kinds.ARRAYS, "validation_data": (X[:9] / 1.0, Y[:9])},
        r"data\.inputs was \['uint8\[8, 8, 1\]'\], is \['float32\[8, 8, 1\]'\]",
    ),
    "weights": ("arrays", lambda files, _: KINDS["weighted arrays"](files), r"data\.weights was None, is \d+\. Exp"),
    "a file of another name": ("a folder", renamed, r"settings: data\.files was \d+, is \d+\. Exp"),
    "a file less": ("a folder", without_one, r"data\.examples was 22, is 21; data\.files"),
    "another crop": (
        "a folder", lambda files, _: {"x": resfit.data.folder(files / "images", size=8, mode="L"), **kinds.CUT},
        r"settings: data\.crop was 'random', is None\. Exp",
    ),
    "another split": (
        "TFDS", lambda files, _: {"x": kinds.prepared(files).as_data_source("more"), **kinds.CUT},
        r"settings: data\.split was 'train', is 'more'\. Exp",
    ),
    "fewer rows": ("Hugging Face", lambda *_: {"x": kinds.table(20), **kinds.CUT}, r"data\.examples was 22, is 20"),
    "fewer files": ("a stream of Hugging Face", fewer_files, r"data\.files .*data\.rows .*data\.shards was 4, is 3"),
    "another window": (
        "a stream", lambda *_: {"x": kinds.stream(window=9), **kinds.CUT}, r"settings: data\.window was 7, is 9\. Exp"
    ),
    "another library": ("MapDataset of Grain", lambda *_: {"x": kinds.passing()}, r"data\.kind was 'GrainBatches', is"),
    "other batches": ("MapDataset of Grain", lambda *_: {"x": kinds.mapped(5)}, r"data\.batches was 3, is 5"),
    "a longer list": (
        "a list of batches", lambda *_: {"x": [(X[:8], Y[:8])] * 4, "class_weight": {1: 2.0}},
        r"settings: data\.batches was 3, is 4\. Exp",
    ),
    "another class weight": (
        "a loader with state, by class", lambda *_: {"x": kinds.Loader(), "class_weight": {1: 3.0}},
        r"settings: data\.class_weight\.1 was 2\.0, is 3\.0\. Exp",
    ),
}  # fmt: skip


@pytest.mark.representatives(
    "fewer examples",
    "other labels",
    "other pixels",
    "weights",
    "another crop",
    "fewer rows",
    "another window",
    "a longer list",
)
@pytest.mark.parametrize("change", CHANGES)
def test_resume_with_other_data_is_refused_and_names_the_difference(
    change: str, files: Path, shared: Path, tmp_path: Path
) -> None:
    kind, other, said = CHANGES[change]
    path = stopped(kind, files, shared, tmp_path)
    with pytest.raises(ResumeError, match=said):
        run(kind, files, path, resume=True, **{"class_weight": None, **other(files, tmp_path)})


@pytest.mark.parametrize(
    "change",
    levels.only(["a file of another name"], ["a file of another name", "another split", "other batches"]),
)
def test_inexact_resume_accepts_other_data(change: str, files: Path, shared: Path, tmp_path: Path) -> None:
    kind, other, _ = CHANGES[change]
    path = stopped(kind, files, shared, tmp_path)
    assert run(kind, files, path, resume="inexact", **other(files, tmp_path))["epoch"] == [0, 1]


def test_a_moved_image_folder_is_the_same_dataset(files: Path, shared: Path, tmp_path: Path) -> None:
    path = stopped("a folder", files, shared, tmp_path)
    found = run("a folder", copied(files, tmp_path / "elsewhere"), path, resume=True)
    assert_same(found, whole("a folder", files, shared)[0])


# --- iterators --------------------------------------------------------------------------------------------------------


def begun() -> Iterator[Any]:
    made = kinds.endless()
    next(made)
    return made


def unnamed() -> Iterator[Any]:
    return iter(kinds.grain_loader(kinds.Unnamed(), epochs=None))


@pytest.mark.parametrize("make", [begun, lambda: itertools.chain(kinds.endless()), unnamed])
def test_exact_resume_refuses_an_iterator_that_may_have_started(
    make: Callable[[], Iterator[Any]], files: Path, shared: Path, tmp_path: Path
) -> None:
    kind = "a generator"
    path = stopped(kind, files, shared, tmp_path)
    saved = whole(kind, files, shared)[1]
    with pytest.raises(ResumeError, match=r"had taken 4 batches\. The data are an iterator.*returns a fresh"):
        run(kind, files, path, resume=True, x=make())
    shutil.rmtree(path)
    shutil.copytree(saved, path / saved.name)
    assert run(kind, files, path, resume="inexact", x=make())["epoch"] == [0, 1]


def test_saving_warns_once_of_an_iterator_without_a_position(
    files: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    left = run("a generator", files, tmp_path / "a", x=itertools.chain(kinds.endless()))
    assert_same(run("a generator", files, tmp_path / "a", x=itertools.chain(), resume=True), left)  # it is finished
    assert caplog.text.count("are an iterator (chain) without state_dict") == 1
    caplog.clear()
    run("a generator", files, tmp_path / "b")
    assert "iterator" not in caplog.text


def test_inexact_resume_uses_the_remainder_of_a_generator(files: Path, shared: Path, tmp_path: Path) -> None:
    kind, data = "a generator", kinds.endless()
    with runs.stopped(SystemExit):
        run(kind, files, tmp_path, runs.Stops(4, runs.terminate), x=data)
    assert_same(run(kind, files, tmp_path, resume="inexact", x=data), whole(kind, files, shared)[0])


def test_a_loader_state_that_cannot_be_saved_is_refused_at_the_first_save(files: Path, tmp_path: Path) -> None:
    class Odd(kinds.Loader):
        def state_dict(self) -> dict[Any, Any]:
            return super().state_dict() | {"lock": [object()]}

    with pytest.raises(DataError, match=r"state_dict\(\)\['lock'\]\[0\] of the data is a builtins\.object"):
        run("a loader with state", files, tmp_path, x=Odd(), every=1)
