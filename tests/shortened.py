"""Thin networks and fits of one epoch, so that `make test` can run the README and the notebooks."""

from collections.abc import Callable
from typing import Any

import resfit


def shorten(set_attribute: Callable[[Any, str, Any], Any]) -> None:
    """Replace `create_model` and `fit`.

    Args:
      set_attribute: `setattr`, or that of pytest's `monkeypatch`.
    """
    create_model, fit = resfit.create_model, resfit.Model.fit

    def thin(name: str, **arguments: Any) -> Any:
        stages = 1 if name == "resnet20" else 3
        return create_model(name, **{"depths": (1,) * stages, "widths": (4,) * stages, **arguments})

    def short(self: resfit.Model, *arguments: Any, **keywords: Any) -> Any:
        return fit(self, *arguments, **keywords | {"epochs": 1})

    set_attribute(resfit, "create_model", thin)
    set_attribute(resfit.Model, "fit", short)
