"""Plots of a run show its values, and invalid data raise."""

from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from resfit import plots
from resfit.callbacks import History
from resfit.data import folder
from resfit.errors import DataError
from resfit.nets.probe import BlockStatistics


def history_of(**values: list[float | None]) -> History:
    history = History()
    for epoch in range(len(next(iter(values.values())))):
        history.on_epoch_end(epoch, {k: v[epoch] for k, v in values.items() if v[epoch] is not None})
    return history


def lines(figure: Figure) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Return the points by panel title and legend label."""
    return {
        axes.get_title(loc="left"): {
            str(line.get_label()): [(float(x), float(y)) for x, y in np.asarray(line.get_xydata())]
            for line in axes.get_lines()
        }
        for axes in figure.axes
    }


def texts(figure: Figure) -> dict[tuple[int, int], str]:
    """Return the text in each cell of a confusion matrix, by (row, column)."""
    return {(int(t.get_position()[1]), int(t.get_position()[0])): t.get_text() for t in figure.axes[0].texts}


def drawn(figure: Figure) -> bytes:
    """Return the pixels of the figure. matplotlib finds most mistakes while it draws."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return bytes(canvas.buffer_rgba())


def test_curves_show_every_value_with_its_validation_from_epoch_one() -> None:
    figure = plots.curves(
        history_of(
            loss=[2.0, 1.0, 0.5], accuracy=[0.5, 0.7, 0.96], val_loss=[1.5, 1.2, 0.75], val_accuracy=[0.1, 0.2, 0.3]
        )
    )
    assert lines(figure) == {
        "loss": {
            "training  0.5000": [(1, 2.0), (2, 1.0), (3, 0.5)],
            "validation  0.7500": [(1, 1.5), (2, 1.2), (3, 0.75)],
        },
        "accuracy": {
            "training  0.9600": [(1, 0.5), (2, 0.7), (3, 0.96)],
            "validation  0.3000": [(1, 0.1), (2, 0.2), (3, 0.3)],
        },
    }


def test_curves_skip_epochs_without_validation() -> None:
    figure = plots.curves(history_of(loss=[3.0, 2.0, 1.0, 0.5], val_loss=[None, 2.5, None, 1.5]))
    assert lines(figure)["loss"]["validation  1.500"] == [(2, 2.5), (4, 1.5)]


def test_a_run_of_one_epoch_is_a_visible_point() -> None:
    (axes,) = plots.curves(history_of(loss=[2.0])).axes
    assert axes.get_lines()[0].get_marker() == "o"


def test_many_values_wrap_into_rows_of_three() -> None:
    figure = plots.curves(history_of(**{name: [1.0, 2.0] for name in ("loss", "a", "b", "c")}))
    assert [axes.get_subplotspec().rowspan.start for axes in figure.axes] == [0, 0, 0, 1]


def test_a_history_without_epochs_raises() -> None:
    with pytest.raises(DataError, match="no finished epoch"):
        plots.curves(History())


@pytest.mark.parametrize("form", ["class numbers", "logits"])
def test_the_confusion_matrix_has_labels_in_rows_and_predictions_in_columns(form: str) -> None:
    labels, predictions = np.array([0, 0, 0, 1, 2, 2]), np.array([0, 0, 2, 1, 2, 1])
    given = predictions if form == "class numbers" else 5.0 * np.eye(3)[predictions]
    figure = plots.confusion_matrix(labels, given, class_names=["cat", "dog", "owl"])
    assert texts(figure) == {(0, 0): "2", (0, 2): "1", (1, 1): "1", (2, 2): "1", (2, 1): "1"}
    (axes,) = figure.axes
    assert axes.get_title(loc="left") == "4 of 6 right (66.67 %)"
    assert [t.get_text() for t in axes.get_yticklabels()] == ["cat", "dog", "owl"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")


def test_a_single_mistake_among_thousands_is_colored() -> None:
    labels = np.repeat([0, 1], 5000)
    predictions = labels.copy()
    predictions[0] = 1
    colors = np.asarray(plots.confusion_matrix(labels, predictions).axes[0].get_images()[0].get_array())
    red, _, blue = colors[0, 1]  # a mistake: orange
    assert red > blue + 0.3
    red, _, blue = colors[1, 0]  # no mistake: gray
    assert red == blue


def test_a_large_confusion_matrix_has_no_numbers() -> None:
    labels = np.arange(200) % 100
    figure = plots.confusion_matrix(labels, labels)
    assert texts(figure) == {}
    assert max(figure.get_size_inches()) <= 14
    assert len(figure.axes[0].get_xticklabels()) <= 40


def test_mistakes_are_those_of_the_logits_with_the_most_confident_first() -> None:
    logits = np.array([[9.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 5.0], [0.0, 9.0, 0.0]])
    images = np.random.default_rng(0).uniform(size=(4, 5, 5, 1))
    figure = plots.mistakes(images, [0, 0, 1, 1], logits)
    assert [axes.get_title() for axes in figure.axes] == ["1 read as 2\n99 % sure", "0 read as 1\n79 % sure"]
    shown = [np.asarray(axes.get_images()[0].get_array()).squeeze() for axes in figure.axes]
    np.testing.assert_array_equal(shown, images[[2, 1], ..., 0])
    assert figure.get_suptitle() == "2 mistakes among 4 images, the surest first"


def test_mistakes_only_reads_the_shown_images_of_a_source() -> None:
    logits = np.array([[9.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 5.0], [0.0, 9.0, 0.0]])
    images = np.random.default_rng(0).uniform(size=(4, 5, 5, 1))
    read = []

    class Source:
        def __len__(self) -> int:
            return len(images)

        def take(self, rows: Any) -> Any:
            read.append(rows)
            return images[rows], None, None

    figure = plots.mistakes(Source(), [0, 0, 1, 1], logits)
    shown = [np.asarray(axes.get_images()[0].get_array()).squeeze() for axes in figure.axes]
    np.testing.assert_array_equal(shown, images[[2, 1], ..., 0])
    assert [len(np.arange(4)[rows]) for rows in read] == [1, 2]
    with pytest.raises(DataError, match="4 images and 2 labels"):
        plots.mistakes(Source(), [0, 1], logits)


@pytest.mark.parametrize(
    ("wrong", "count", "headline"),
    [
        (0, 16, "No mistake among 20 images; the 16 least sure"),
        (1, 16, "1 mistake among 20 images"),
        (3, 16, "3 mistakes among 20 images, the surest first"),
        (20, 16, "20 mistakes among 20 images; the 16 surest"),
    ],
)
def test_the_title_contains_the_number_of_mistakes_and_of_shown_images(wrong: int, count: int, headline: str) -> None:
    labels = np.zeros(20, int)
    logits = np.eye(2)[(np.arange(20) < wrong).astype(int)]
    figure = plots.mistakes(np.zeros((20, 4, 4, 3), np.uint8), labels, logits, count=count)
    assert figure.get_suptitle() == headline
    assert len(figure.axes) == min(wrong or 20, count)


def test_without_mistakes_the_least_confident_predictions_are_shown() -> None:
    logits = np.array([[9.0, 0.0], [0.5, 0.0], [0.0, 2.0]])
    figure = plots.mistakes(np.zeros((3, 4, 4, 1)), [0, 0, 1], logits, count=2)
    assert [axes.get_title() for axes in figure.axes] == ["0 read as 0\n62 % sure", "1 read as 1\n88 % sure"]


@pytest.mark.parametrize(("dtype", "white"), [(np.uint8, 255), (np.float32, 1)])
def test_a_dark_image_stays_dark(dtype: Any, white: float) -> None:
    """The gray scale depends on the dtype of the images, not on the values of each image."""
    figure = plots.mistakes(np.full((1, 2, 2, 1), white // 5, dtype), [0], [[0.0, 1.0]])
    assert figure.axes[0].get_images()[0].get_clim() == (0, white)


@pytest.mark.parametrize(
    ("figure", "says"),
    [
        (lambda: plots.confusion_matrix([0, 1], [0, 1, 1]), r"labels \(2,\), predictions \(3,\)"),
        (lambda: plots.confusion_matrix([0, 1], [0, -1]), "from 0"),
        (lambda: plots.confusion_matrix([0, 1], [0.2, 0.7]), "float64"),
        (lambda: plots.confusion_matrix([], []), "class numbers"),
        (lambda: plots.confusion_matrix([[1, 0]], [[1.0, 0.0]]), "argmax"),
        (lambda: plots.confusion_matrix([0, 5], [[1.0, 0.0], [1.0, 0.0]]), "Expected 0 to 1"),
        (lambda: plots.confusion_matrix([-1, 0], [0, 0]), "run from -1"),
        (lambda: plots.confusion_matrix([0, 1], [0, 1], class_names=["cat"]), "1 class names for 2 classes"),
        (lambda: plots.mistakes(np.zeros((2, 4, 4)), [0, 1], np.zeros((2, 2))), r"\(2, 4, 4\)"),
        (lambda: plots.mistakes(np.zeros((2, 4, 4, 1)), [0, 1], [0, 1]), "model.predict"),
        (lambda: plots.mistakes(np.zeros((2, 4, 4, 1)), [0, 1], [[0.0, np.nan], [0.0, 1.0]]), "finite"),
        (
            lambda: plots.mistakes(np.zeros((2, 4, 4, 1)), [0, 1], np.zeros((2, 2)), count=0),
            "count to be a positive integer, got 0",
        ),
        (lambda: plots.mistakes(np.zeros((3, 4, 4, 1)), [0, 1], np.zeros((2, 2))), "the same number of examples"),
    ],
)
def test_arguments_that_do_not_match_raise(figure: Any, says: str) -> None:
    with pytest.raises(DataError, match=says):
        figure()


def test_every_plot_can_be_drawn_and_differs_for_different_runs() -> None:
    images, labels = np.random.default_rng(0).uniform(size=(12, 8, 8, 1)), np.arange(12) % 3
    right, wrong = 3.0 * np.eye(3)[labels], 3.0 * np.eye(3)[(labels + 1) % 3]
    assert drawn(plots.curves(history_of(loss=[2.0, 1.0]))) != drawn(plots.curves(history_of(loss=[1.0, 2.0])))
    assert drawn(plots.confusion_matrix(labels, right)) != drawn(plots.confusion_matrix(labels, wrong))
    assert drawn(plots.mistakes(images, labels, right)) != drawn(plots.mistakes(images, labels, wrong))


def test_a_schedule_is_drawn_step_by_step_including_the_last_step() -> None:
    figure = plots.learning_rate_schedule(lambda step: 0.1 * (step + 1), 5)
    (line,) = figure.axes[0].get_lines()
    np.testing.assert_allclose(np.asarray(line.get_xydata()), [(i, 0.1 * (i + 1)) for i in range(5)])
    long = plots.learning_rate_schedule(lambda step: 1.0 + step, 100_000).axes[0].get_lines()[0].get_xdata()
    assert (len(long), long[0], long[-1]) == (1000, 0, 99_999)
    assert drawn(figure)


@pytest.mark.parametrize(
    ("rate", "steps", "words"),
    [
        (lambda step: 1.0, 0, "steps to be a positive integer, got 0"),
        (lambda step: np.nan if step == 2 else 1.0, 5, "step 2"),
    ],
)
def test_a_schedule_that_cannot_be_drawn_raises(rate: Any, steps: int, words: str) -> None:
    with pytest.raises(DataError, match=words):
        plots.learning_rate_schedule(rate, steps)


def test_blocks_are_drawn_with_the_first_one_at_the_top_over_whole_decades() -> None:
    blocks = [BlockStatistics("stem", 1.0, 0.0, 0.02), BlockStatistics("block", 2.0, 0.5, 0.0),
              BlockStatistics("head", np.inf, 1.0, 0.03)]  # fmt: skip
    figure = plots.block_statistics(blocks)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["stem", "block", "head"]
    assert figure.axes[0].get_ylim()[0] > figure.axes[0].get_ylim()[1]
    found = [np.asarray(axes.get_lines()[0].get_xdata()).tolist() for axes in figure.axes]
    assert found == [[1.0, 2.0, np.inf], [0.02, 0.0, 0.03], [0.0, 50.0, 100.0]]
    low, high = figure.axes[1].get_xlim()
    assert low < 0.01 < 0.1 < high
    assert drawn(figure)
    with pytest.raises(DataError, match="no blocks"):
        plots.block_statistics([])


def test_grad_cam_shows_each_image_above_the_same_image_with_its_map() -> None:
    images, maps = np.random.default_rng(0).random((3, 4, 4, 3)), np.random.default_rng(1).random((3, 4, 4))
    figure = plots.grad_cam(images, maps, ["a", "b", "c"], count=2)
    shown = [[np.asarray(image.get_array()) for image in axes.get_images()] for axes in figure.axes]
    assert [len(layers) for layers in shown] == [1, 2, 1, 2]
    np.testing.assert_array_equal(shown[2][0], images[1])
    np.testing.assert_array_equal(shown[3][1], maps[1])
    assert [axes.get_title() for axes in figure.axes] == ["a", "", "b", ""]
    assert drawn(figure)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"maps": np.ones((2, 4, 5))}, r"maps of shape \(2, 4, 5\)"),
        ({"images": np.ones((2, 4, 4, 2))}, r"\(2, 4, 4, 2\)"),
        ({"titles": ["one"]}, "1 titles for 2"),
        ({"count": 0}, "count to be a positive integer, got 0"),
    ],
)
def test_maps_that_do_not_match_the_images_raise(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        plots.grad_cam(**{"images": np.ones((2, 4, 4, 1)), "maps": np.ones((2, 4, 4)), **arguments})


class Pictures:
    """A source of four images of two classes."""

    labels, classes = np.array([0, 1, 1, 0]), ("a_class_with_quite_a_long_name", "dog")
    taken: list[Any]

    def __init__(self) -> None:
        self.taken = []

    def __len__(self) -> int:
        return 4

    def take(self, rows: Any) -> Any:
        self.taken.append(rows)
        images = np.arange(4, dtype=np.uint8)[:, None, None, None] * np.ones((4, 6, 6, 3), np.uint8)
        return images[rows], self.labels[rows], None


def test_plots_read_labels_and_class_names_of_a_source() -> None:
    logits = np.array([[3.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 4.0]])
    figure = plots.mistakes(Pictures(), logits=logits)
    assert figure.axes[0].get_title() == "a_class_with_quite_a\n_long_name read as\ndog\n98 % sure"
    assert len(figure.axes) == 2
    matrix = plots.confusion_matrix(Pictures(), logits)
    assert [label.get_text() for label in matrix.axes[0].get_yticklabels()] == [
        "a_class_with_quite_a\n_long_name",
        "dog",
    ]
    assert texts(matrix) == {(0, 0): "1", (0, 1): "1", (1, 0): "1", (1, 1): "1"}
    drawn(figure)
    drawn(matrix)


def test_a_batch_shows_the_first_images_with_their_names() -> None:
    source = Pictures()
    figure = plots.batch(source, count=3)
    assert [axes.get_title().replace("\n", "") for axes in figure.axes] == [source.classes[0], "dog", "dog"]
    assert source.taken == [slice(0, 3)]
    x, y, _ = source.take(slice(None))
    figure = plots.batch(x / 255, y)
    assert [axes.get_title() for axes in figure.axes] == ["0", "1", "1", "0"]
    np.testing.assert_array_equal(figure.axes[2].images[0].get_array(), x[2] / 255)
    assert [axes.get_title() for axes in plots.batch(x, np.eye(2)[y]).axes][:2] == ["[1., 0.]", "[0., 1.]"]
    assert [axes.get_title() for axes in plots.batch(x).axes] == [""] * 4
    drawn(figure)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros((6, 6, 3)),), "image\\[None\\]"),
        ((np.zeros((2, 6, 6, 3)), [0]), "2 images and 1 labels"),
        ((np.zeros((1, 6, 6, 3)), [2], ["a", "b"]), "the label 2 and 2 class names"),
        ((np.zeros((1, 6, 6, 3)), [0], None, 0), "count"),
    ],
    ids=["one image", "labels", "names", "count"],
)
def test_a_wrong_batch_raises(arguments: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        plots.batch(*arguments)


def test_mistakes_without_logits_raise() -> None:
    with pytest.raises(DataError, match=r"mistakes\(source, logits=logits\)"):
        plots.mistakes(Pictures())


def test_a_folder_shows_its_images(tmp_path: Any) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (9, 8), "red" if name == "cat" else "blue").save(tmp_path / name / "1.png")
    images = folder(tmp_path, size=6, crop="random")
    figure = images.show()
    assert {axes.get_title(): axes.images[0].get_array()[0, 0].tolist() for axes in figure.axes} == {
        "cat": [255, 0, 0],
        "dog": [0, 0, 255],
    }
    assert len(images.show(1).axes) == 1
