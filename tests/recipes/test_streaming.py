"""The streaming recipe writes its files, trains from both sources, and learns."""

from pathlib import Path

import pytest

from tests.recipes.fashion import load, percent, run, say

ACCURACY = r"Test accuracy (\d+\.\d+)% after 3 epochs"


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.mark.slow
def test_it_learns_from_parquet_files() -> None:
    assert percent(ACCURACY, run("streaming.py", "--epochs", "3")) > 50
    assert len(list(Path("out/streaming/huggingface/digits").glob("*.parquet"))) == 9


@pytest.mark.exhaustive
def test_it_learns_from_tfds() -> None:
    assert percent(ACCURACY, run("streaming.py", "--epochs", "3", "--source", "tfds")) > 50


def test_help_states_the_result() -> None:
    text = say(load("streaming"), "--help", status=0)
    for said in ("--source", "--data", "--epochs", "cores", "98.89 %", "CPU seconds"):
        assert said in text
