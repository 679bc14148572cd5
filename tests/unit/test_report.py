"""The pages stand alone, escape what they are given, and survive searches that went badly."""

import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import optuna
import pytest
from PIL import Image

from fer_scale import figures, report
from fer_scale.search import drawings
from fer_scale.search.chosen import chosen
from fer_scale.search.page import page
from fer_scale.search.price import front, per_million
from fer_scale.search.rows import TRIALS_SCHEMA, mark_ties, ranked
from fer_scale.search.space import suggest

VOID = {"meta", "img", "br", "link", "input", "hr"}
FAMILIES = {"cnn1": 1, "cnn2": 2, "complex_cnn": 6, "vgg16": 30, "resnet": 8, "efficientnet": 10}


class Balance(HTMLParser):
    """Every opened element is closed, in order; ids are unique."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [value for name, value in attrs if name == "id" and value]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [value for name, value in attrs if name == "id" and value]

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag


def check(html: str) -> None:
    parser = Balance()
    parser.feed(html)
    assert parser.open == []
    assert len(parser.ids) == len(set(parser.ids))
    assert not re.search(r"https?://|<script|@import|#0e00", html)


def drawn(seed: int) -> optuna.Trial:
    return optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed)).ask()


def trials(count: int = 40) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for i in range(count):
        family = list(FAMILIES)[i % 6]
        rung = int(rng.choice([1, 1, 1, 2, 2, 3]))
        seconds = float(15 * 3**rung * rng.uniform(0.8, 1.2))
        ended = 1.7e9 + 60 * i + seconds
        accuracy = float(np.clip(0.48 + 0.07 * rung + 0.02 * (i % 6) + rng.normal(0, 0.02), 0, 1))
        speed = 20000 / FAMILIES[family] if rung > 1 else None
        rows.append(
            {
                **dict.fromkeys(TRIALS_SCHEMA.names),
                "trial_id": i,
                "family": family,
                "configuration": json.dumps(suggest(drawn(i), [family], {}).to_dict()),
                "parameters": FAMILIES[family] * 500_000,
                "input": "48x48x1",
                "weights": "none" if i % 6 < 3 else "imagenet",
                "images_seen": int(seconds * 200),
                "compute_seconds": seconds,
                "rung": rung,
                "accuracy": accuracy,
                "accuracy_low": accuracy - 0.04,
                "accuracy_high": accuracy + 0.04,
                "images_per_second": speed,
                "price_per_million": per_million(speed, 0.04),
                "status": "completed" if rung == 3 else "pruned",
                "reason": "reached the highest rung" if rung == 3 else f"not promoted from rung {rung}",
                "started": 1.7e9 + 60 * i,
                "ended": ended,
                "scores": [accuracy - 0.02 * (rung - at) for at in range(1, rung + 1)],
                "scored": [ended - 10 * (rung - at) for at in range(1, rung + 1)],
            }
        )
    best = ranked(rows)[0]
    best.update(confirmed=best["accuracy"] - 0.01, confirmed_low=best["accuracy"] - 0.03, confirmed_high=0.8)
    mark_ties(ranked(rows))
    failed = {**rows[-1], "trial_id": 999, "rung": 0, "status": "failed", "reason": "the loss is <not> finite"}
    unknown = ("accuracy", "accuracy_low", "accuracy_high", "confirmed", "parameters", "weights", "images_per_second")
    return [*rows, failed | dict.fromkeys((*unknown, "price_per_million"))]


def test_search_report_stands_alone_and_ranks() -> None:
    table = trials()
    facts = {"seconds": 4000.0, "store": "faces & more", "rungs": [1.5, 4.5], "commit": None}
    html = page(table, facts, {"optimizer": 0.7, "resnet.width": 0.3})
    check(html)
    best = ranked([row for row in table if row["accuracy"] is not None])[0]
    assert html.index(f'title="trial {best["trial_id"]}"') == html.index('title="trial ')
    assert "Fitted once more on a fresh seed" in html
    assert f"{sum(bool(row['tie']) for row in table)} other trial is marked tie" in html
    assert "1 h 6 min" in html
    assert "1.5, 4.5" in html
    assert "faces &amp; more" in html
    assert "the loss is &lt;not&gt; finite" in html
    assert html.count('title="trial ') == len(table)
    assert html.count("<svg") == 6


def test_every_line_of_the_front_picks_its_own_trial(tmp_path: Path) -> None:
    table = trials()
    board = [{**row, "configuration": json.loads(row["configuration"])} for row in ranked(table)]
    (tmp_path / "leaderboard.json").write_text(json.dumps({"trials": board}))
    said = [float(text) for text in re.findall(r"--min-accuracy ([0-9.]+)", page(table, {}, {}))]
    assert len(said) == len(front(board)) > 1
    for least, row in zip(said, front(board), strict=True):
        assert chosen(str(tmp_path), "cheapest", least).to_dict() == row["configuration"]


def test_search_report_when_every_trial_failed() -> None:
    html = page(trials(1)[1:], {}, {})
    check(html)
    assert "No trial got as far" in html


@pytest.mark.parametrize("speed", [None, 1.0, 1932.1, 5000.0, 1e9])
def test_search_report_of_a_single_trial(speed: float | None) -> None:
    check(page([{**trials(1)[0], "images_per_second": speed, "compute_seconds": speed or 0.0}], {}, {}))


def test_figures_on_one_page_share_no_names() -> None:
    drawn = [
        drawings.survivors(["begun", 1], [("cnn1", [3, 1]), ("resnet", [2, 2])]),
        drawings.best_so_far([(1, 0.3), (2, 0.5)]),
        figures.lines([("a", [1, 2], [3, 4]), ("b", [1, 2], [4, 3])], "two", "x", "y"),
        figures.reliability([], [{"confidence": 0.8, "accuracy": 0.7, "share": 1.0}], 1.2),
    ]
    check("".join(drawn))
    assert all("<title>" in svg for svg in drawn)
    assert all("var(--" in svg for svg in drawn)


def test_the_same_figure_twice_is_the_same_text() -> None:
    assert drawings.best_so_far([(1, 0.5)]) == drawings.best_so_far([(1, 0.5)])


def test_figure_titles_are_escaped() -> None:
    assert "<b>" not in figures.lines([("a<b>", [1], [1])], "<b>", "<b>", "<b>")


def test_a_forgotten_value_is_an_error() -> None:
    with pytest.raises(jinja2.UndefinedError):
        report.render("search.html.j2", title="x")


@pytest.mark.parametrize(
    ("value", "text"), [(999, "999"), (1500, "1.5 k"), (3_812_004, "3.8 M"), (138e6, "138 M"), (2e9, "2.0 G")]
)
def test_short(value: float, text: str) -> None:
    assert report.short(value).replace("\u202f", " ") == text


def test_pictures_are_small() -> None:
    large = report.picture(Image.effect_noise((2000, 1000), 40))
    assert large.startswith("data:image/png;base64,")
    assert len(large) < 10_000


def test_a_name_is_drawn_as_it_is() -> None:
    series = [(name, [0.0, 1.0], [0.0, 1.0]) for name in ("_best", "run$_$1", "$\\frac$")]
    drawn = figures.lines(series, "title", "x", "y")
    for name in ("_best", "run$_$1", "$\\frac$"):
        assert name in html.unescape(str(drawn))
