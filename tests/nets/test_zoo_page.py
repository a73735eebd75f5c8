"""docs/zoo.md agrees with the table and the oracles; its differences come from the last `make zoo`."""

import re

import pytest

from resfit.nets import ZOO
from tests import make_onnx, make_zoo
from tests.make_zoo import GOLDEN, HEAD, INTRO, PAGE, row
from tests.weights.test_torch_oracle import TOLERANCE


def rows() -> dict[str, tuple[str, ...]]:
    """Return the rows of the page by network."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    cells = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines]
    assert cells[0] == HEAD
    return {found[0].strip("`"): found for found in cells[1:]}


def test_the_page_has_every_network_in_order_and_the_text_of_the_script() -> None:
    assert list(rows()) == [name for name in ZOO if not name.startswith("inverted")]
    assert PAGE.read_text().startswith(INTRO), "run `make zoo`"


@pytest.mark.parametrize("name", tuple(ZOO))
def test_a_row_matches_the_table_and_the_oracle(name: str) -> None:
    found = rows()[name]
    difference = found[HEAD.index("difference")]
    assert found == row(name, difference), "run `make zoo`"
    if name not in GOLDEN["members"]:
        assert difference == ""
    else:
        assert re.fullmatch(r"\de-\d\d", difference)
        assert 0 < float(difference) < TOLERANCE


@pytest.mark.parametrize("name", make_zoo.ONNX["networks"])
def test_an_onnx_file_was_within_the_bar(name: str) -> None:
    """Recorded numbers; `make originals` measures them again."""
    assert name in make_onnx.MEASURED
    row = make_zoo.ONNX["networks"][name]
    assert 0 < make_onnx.relative(row) < make_onnx.BARS.get(name, make_onnx.BAR)
    assert row["same_class"] == 1
