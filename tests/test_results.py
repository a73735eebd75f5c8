"""docs/results.md is what `make results` writes from results/*.csv."""

import re
from pathlib import Path

import numpy as np
import pytest

from tests import make_results
from tests.recipes.fashion import PNG, load

ROOT = Path(__file__).parents[1]
HEAD = "recipe,network,data,evaluation,seed,accuracy,epochs,minutes,cpu_minutes,machine,commit,date,command\n"


def line(recipe: str, evaluation: str, seed: int, accuracy: float) -> str:
    return f'{recipe},net,some test,"{evaluation}",{seed},{accuracy},4,1.5,2.5,a machine,abc,2026-11-30,python a.py\n'


def written(*lines: str) -> Path:
    folder = Path("results")
    (folder / "curves").mkdir(parents=True, exist_ok=True)
    (folder / "a.csv").write_text(HEAD + "".join(lines))
    return folder


def test_the_page_is_that_of_the_results() -> None:
    assert (ROOT / "docs" / "results.md").read_text() == make_results.page(ROOT / "results"), "run make results"


def test_every_picture_of_the_page_is_there() -> None:
    pictures = re.findall(r"\(pictures/(\S+)\)", (ROOT / "docs" / "results.md").read_text())
    assert set(pictures) == {f"results_{path.stem}.png" for path in (ROOT / "results" / "curves").glob("*.csv")}
    for picture in pictures:
        assert (ROOT / "docs" / "pictures" / picture).read_bytes().startswith(PNG)


def test_a_row_has_the_mean_and_the_standard_deviation_over_the_seeds() -> None:
    folder = written(*(line("fast", "last epoch", seed, value) for seed, value in enumerate([0.9, 0.91, 0.95])))
    spread = np.std([90, 91, 95], ddof=1)
    row = f"| fast | net | some test | last epoch | 4 | 3 | 92.00 ± {spread:.2f} | 1.5 (2.5) | a machine | abc |"
    assert row in make_results.page(folder)
    assert "```bash\npython a.py\n```" in make_results.page(folder)


def test_one_run_has_no_spread_and_an_unknown_time_of_the_processor_is_left_out() -> None:
    folder = written(line("fast", "ema", 0, 0.9).replace(",2.5,", ",,"))
    assert "| fast | net | some test | ema | 4 | 1 | 90.00 | 1.5 | a machine |" in make_results.page(folder)


def test_a_technique_is_compared_seed_by_seed() -> None:
    """Seed 2 has no run with the technique, so it does not count."""
    plain, erased = [0.9, 0.91, 0.99], [0.905, 0.925]
    folder = written(
        *(line("fast", "last epoch", seed, value) for seed, value in enumerate(plain)),
        *(line("fast", "ema", seed, value - 0.01) for seed, value in enumerate(plain)),
        *(line("fast + erasing", "last epoch", seed, value) for seed, value in enumerate(erased)),
    )
    page = make_results.page(folder)
    assert "| fast | erasing | some test | 4 | 2 | +1.00 ± 0.50 |" in page
    assert "| fast | evaluation ema | some test | 4 | 3 | -1.00 ± 0.00 |" in page


def test_recipes_are_compared_in_the_order_of_their_lines() -> None:
    names = [f"recipe{number}" for number in (3, 1, 4, 5, 2)]
    pairs = [(name, f"{name} + erasing") for name in names]
    page = make_results.page(written(*(line(one, "last epoch", 0, 0.9) for pair in pairs for one in pair)))
    assert [row.split(" | ")[0][2:] for row in page.splitlines() if "| erasing |" in row] == names


def test_a_run_that_the_file_has_twice_raises() -> None:
    folder = written(line("fast", "ema", 0, 0.9), line("fast", "ema", 0, 0.9))
    with pytest.raises(ValueError, match="has 2 lines of fast, evaluation ema, seed 0"):
        make_results.page(folder)


def test_the_difference_of_one_pair_has_no_standard_error() -> None:
    assert load("runs").mean_and_error(np.array([0.5])) == "+0.50"


def test_curves_are_drawn_with_and_without_held_out_images() -> None:
    folder = written(line("fast", "ema", 0, 0.9))
    rows = [f"fast,net,some test,{seed},2,{epoch},0.{epoch},0.5,,\n" for seed in (0, 1) for epoch in (1, 2)]
    rows += ["full,net,some test,0,1,1,0.5,0.5,0.7,0.4\n"]
    head = "recipe,network,data,seed,epochs,epoch,loss,accuracy,val_loss,val_accuracy\n"
    (folder / "curves" / "a.csv").write_text(head + "".join(rows))
    make_results.draw(folder / "curves" / "a.csv", Path("a.png"))
    assert Path("a.png").read_bytes().startswith(PNG)
    assert "(pictures/results_a.png)" in make_results.page(folder)
    (folder / "curves" / "a.csv").write_text(head + rows[0] * 2)
    with pytest.raises(ValueError, match="has 2 lines of fast, epoch 1, seed 0"):
        make_results.page(folder)
