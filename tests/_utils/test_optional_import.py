"""A test whose package is missing is skipped, or fails if the package is required."""

import sys

import pytest

from tests.packages import package


@pytest.fixture(autouse=True)
def _is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "keras", None)


def test_a_test_is_skipped_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESFIT_REQUIRE", "wandb")
    with pytest.raises(pytest.skip.Exception, match="make against"):
        package("keras")


def test_a_test_fails_without_a_required_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESFIT_REQUIRE", "wandb,keras")
    with pytest.raises(ImportError, match="keras"):
        package("keras")
