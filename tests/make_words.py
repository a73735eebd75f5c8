"""Writes the tables of words into docs/words.md: `make words`. `tests/_utils/test_words.py` checks the page."""

import re
from pathlib import Path

from resfit._utils.words import WORDS

PAGE = Path(__file__).parents[1] / "docs" / "words.md"
BEGIN, END = "<!-- `make words` writes the tables from here -->\n", "<!-- to here -->\n"

TITLES = {
    "methods": "Methods of a subclass of `Model`, which raise where they are defined",
    "settings": "Attributes of a model, which raise where they are set",
    "assignments": "Attributes that raise where they are set on a `resfit.Model`; a subclass can use these names",
    "members": "Other attributes and methods of a model; they raise where they are read, or set on a `resfit.Model`",
    "model arguments": "Arguments of `Model`",
    "arguments": "Arguments of `compile`, `fit`, `evaluate` and `predict`, and of other methods of a model",
    "exported arguments": "Arguments of `predict` of an exported model",
    "data arguments": "Arguments of `resfit.data.folder` and `resfit.data.files`, and of the classes of `resfit.data`",
    "function arguments": "Arguments of schedules, optimizers, augmentations and other functions",
    "loss arguments": "Arguments of losses",
    "callback arguments": "Arguments of callbacks",
    "network": "Arguments of `create_model` and of the classes of `resfit.nets`",
    "loss": "Losses",
    "metrics": "Metrics",
    "optimizer": "Optimizers",
    "callbacks": "Callbacks",
    "augment": "Augmentation",
    "schedules": "Schedules",
    "transforms": "Transforms",
    "data": "Data",
    "preprocess": "Preprocessing",
    "plots": "Figures",
    "distributed": "Several devices and processes",
    "weights": "Weights",
    "networks": "Networks",
    "package": "Names of other packages",
}


def tables() -> str:
    """Return the part of the page between the two comments."""
    parts = [BEGIN]
    for place, rows in WORDS.items():
        parts.append(f"\n## {TITLES[place]}\n\n| elsewhere | resfit |\n|---|---|\n")
        for answer, words in rows.items():
            shown = [f"`{word}`" for word in words.split() if not word.startswith("on_")]
            if len(shown) < len(words.split()):
                shown.append("hooks such as `on_train_epoch_end`")
            parts.append(f"| {', '.join(shown)} | {answer} |\n")
    return "".join([*parts, "\n", END])


if __name__ == "__main__":
    text = PAGE.read_text()
    PAGE.write_text(re.sub(f"{re.escape(BEGIN)}.*{re.escape(END)}", lambda _: tables(), text, flags=re.DOTALL))
