"""The model card says what it must, in Markdown that holds together."""

import numpy as np

from fer_scale.learning.configuration import Configuration
from fer_scale.learning.metrics import summarise
from fer_scale.report import render

CLASSES = ["happy", "sad"]


def made(**changes: object) -> str:
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]], dtype=np.float32)
    values: dict[str, object] = {
        "configuration": Configuration.reference("cnn1").to_dict(),
        "classes": CLASSES,
        "counts": {"train": {"happy": 1200, "sad": 800}, "val": {"happy": 2, "sad": 2}},
        "fingerprint": "abc123",
        "metrics": {
            **summarise(probabilities, np.array([0, 0, 1, 1]), CLASSES),
            "ece_uncalibrated": 0.2,
            "temperature": 1.25,
        },
        "weights": "none",
        "versions": {"torch": "2.14.1", "timm": "1.0.31"},
        "seconds": 75.0,
    }
    return render("card.md.j2", **(values | changes))


def test_card_leaves_room_for_the_id_and_tells_the_figures() -> None:
    text = made()
    assert text.count("{model_id}") == 1
    assert "75.0\u202f%, 95 % interval 30.1 to 95.4\u202f%" in text
    assert "| temperature | 1.250 |" in text
    assert "| train | 1,200 | 800 | 2,000 |" in text
    assert "1 min 15 s" in text
    assert "torch 2.14.1, timm 1.0.31" in text
    assert '"family": "cnn1"' in text


def test_card_names_what_is_forbidden_and_what_is_unknown() -> None:
    text = made()
    for words in (
        "Article 5(1)(f)",
        "work or in education",
        "Not for",
        "Intended use",
        "skin tones",
        "Labels are opinions",
    ):
        assert words in text


def test_every_row_of_a_table_has_as_many_cells() -> None:
    blocks = [block.splitlines() for block in made().split("\n\n")]
    tables = [block for block in blocks if block[0].startswith("|")]
    assert len(tables) == 3
    for table in tables:
        assert len({row.count("|") for row in table}) == 1, table


def test_names_are_taken_literally() -> None:
    assert "<happy & glad>" in made(weights="<happy & glad>")
