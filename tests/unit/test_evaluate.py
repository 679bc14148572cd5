"""evaluate on a small real network, fitted here for a second on drawn mouths."""

import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image, ImageDraw

from fer_scale import bundle
from fer_scale.errors import InputError
from fer_scale.faces.images import Preprocessing, pixel_sha256, prepare
from fer_scale.faces.store import STORE_SCHEMA, STORE_VERSION, Store
from fer_scale.families.network import Network
from fer_scale.learning.configuration import Configuration
from fer_scale.learning.metrics import summarise
from fer_scale.predictor import Predictor
from fer_scale.report import render
from fer_scale.verbs.evaluate import evaluate

CLASSES = ["happy", "sad", "surprised"]
SIZE = 24
CONFIGURATION = Configuration.from_dict(
    {
        "family": "cnn1",
        "network": {"width": 0.25, "conv_dropout": 0.0, "dense_dropout": 0.0},
        "preprocessing": {"size": SIZE},
    }
)


def mouth(label: str, rng: np.random.Generator) -> bytes:
    image = Image.new("L", (48, 48), int(rng.integers(120, 220)))
    pen = ImageDraw.Draw(image)
    x, y = rng.integers(-5, 6, 2)
    box = (12 + x, 18 + y, 36 + x, 38 + y)
    if label == "surprised":
        pen.ellipse(box, fill=20)
    else:
        pen.arc(box, *((20, 160) if label == "happy" else (200, 340)), fill=20, width=4)
    noisy = np.asarray(image, dtype=np.float64) + rng.normal(0, 45, (48, 48))
    buffer = io.BytesIO()
    Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def make_store(path: Path, counts: dict[str, int], classes: list[str] = CLASSES, seed: int = 0) -> Path:
    """A store of drawn mouths; `counts` are rows a class by split, a fifteenth of them labelled wrong."""
    rng = np.random.default_rng(seed)
    rows = []
    for split, count in counts.items():
        for i in range(count * len(classes)):
            label = classes[i % len(classes)]
            data = mouth(label, rng)
            if i % 15 == 14:
                label = classes[(i + 1) % len(classes)]
            sha = pixel_sha256(Image.open(io.BytesIO(data)))
            rows.append((f"{split}/{i:04d}.png", data, label, split, "drawn", 48, 48, sha, None))
    columns = [
        pa.array(column, field.type) for column, field in zip(zip(*rows, strict=True), STORE_SCHEMA, strict=True)
    ]
    table = pa.table(columns, schema=STORE_SCHEMA)
    (path / "data").mkdir(parents=True)
    pq.write_table(table, path / "data" / "part-0.parquet")
    frame = table.select(["split", "label"]).to_pandas()
    by_split = {
        split: {name: int(((frame.split == split) & (frame.label == name)).sum()) for name in classes}
        for split in counts
    }
    manifest = {
        "version": STORE_VERSION,
        "classes": classes,
        "fingerprint": f"drawn-{seed}",
        "counts": {"splits": by_split},
    }
    (path / "manifest.json").write_text(json.dumps(manifest))
    return path


def fitted(store: Path, steps: int, seed: int) -> Network:
    """A small cnn1 after some steps of Adam on the store's train split."""
    torch.manual_seed(seed)
    network = bundle.build(CONFIGURATION, len(CLASSES))
    rows = pq.read_table(store / "data" / "part-0.parquet").to_pandas().query("split == 'train'")
    images = torch.from_numpy(np.stack([prepare(data, CONFIGURATION.preprocessing) for data in rows.image]))
    labels = torch.tensor([CLASSES.index(name) for name in rows.label])
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    network.train()
    for step in range(steps):
        batch = torch.arange(step * 64, step * 64 + 64) % len(labels)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(images[batch]), labels[batch]).backward()
        optimizer.step()
    return network


def make_bundle(path: Path, network: Network, fingerprint: str = "drawn-0", classes: list[str] = CLASSES) -> Path:
    path.mkdir()
    facts = {
        "data_fingerprint": fingerprint,
        "weights": network.weights,
        "versions": {"torch": torch.__version__},
    }
    curve = pd.DataFrame({"epoch": [1, 2, 3], "seconds": [60.0, 120.0, 180.0], "val_accuracy": [0.4, 0.6, 0.7]})
    bundle.write(
        path,
        network,
        CONFIGURATION,
        classes=classes,
        temperature=1.3,
        facts=facts,
        metrics={},
        curve=curve,
        card="{model_id}",
    )
    return path


def card_of(store: Path) -> str:
    return render(
        "card.md.j2",
        configuration=CONFIGURATION.to_dict(),
        classes=CLASSES,
        counts=json.loads((store / "manifest.json").read_text())["counts"]["splits"],
        fingerprint="drawn-0",
        metrics=summarise(np.eye(3, dtype=np.float32), np.arange(3), CLASSES),
        weights="none",
        versions={},
        seconds=1.0,
    )


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store and two bundles, `long` fitted for longer than `brief`."""
    work = tmp_path_factory.mktemp("evaluate")
    store = make_store(work / "store", {"train": 300, "val": 10, "test": 60})
    make_bundle(work / "long", fitted(store, 60, seed=1))
    make_bundle(work / "brief", fitted(store, 6, seed=2))
    return work


def test_figures_of_one_bundle_follow_from_its_predictions(work: Path, tmp_path: Path) -> None:
    result = evaluate(work / "long", work / "store", out=tmp_path / "report", quiet=True)
    report = str(tmp_path / "report" / "report.html")
    assert {**json.loads((tmp_path / "report" / "metrics.json").read_text()), "report": report} == result
    rows = pd.read_parquet(tmp_path / "report" / "predictions.parquet")
    assert len(rows) == result["n"] == 180
    assert rows.id.is_unique
    assert (rows.label == rows.predicted).mean() == pytest.approx(result["accuracy"])
    low, high = result["accuracy_interval"]
    assert 0.6 < low < result["accuracy"] < high <= 1
    confusion = pd.crosstab(rows.label, rows.predicted).reindex(index=CLASSES, columns=CLASSES, fill_value=0)
    assert confusion.to_numpy().tolist() == result["confusion"]
    probabilities = rows[[f"prob_{name}" for name in CLASSES]].to_numpy()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(rows.confidence, probabilities.max(axis=1))
    predictor = Predictor.load(work / "long")  # as label and serve do
    known = Store.open(str(work / "store")).faces("test", predictor.preprocessing)
    answered = rows.set_index("id").loc[known.ids, [f"prob_{name}" for name in CLASSES]]
    np.testing.assert_allclose(answered, predictor.probabilities(known.images), atol=1e-5)
    assert result["ece"] != result["ece_uncalibrated"]
    assert result["split"] == "test"
    assert set(rows.model_id) == {result["model_id"]}
    assert {"macro_f1", "per_class", "classes", "ece", "ece_uncalibrated", "parameters"} <= set(result)


def test_report_stands_alone_and_shows_the_surest_mistakes(work: Path, tmp_path: Path) -> None:
    result = evaluate(work / "long", work / "store", out=tmp_path / "report", quiet=True)
    html = (tmp_path / "report" / "report.html").read_text()
    assert "<script" not in html
    assert not re.search(r"https?://|@import|url\((?!#)", html)
    wrong = result["n"] - np.trace(np.array(result["confusion"]))
    assert html.count("data:image/png;base64,") == min(24, wrong) > 0
    rows = pd.read_parquet(tmp_path / "report" / "predictions.parquet")
    surest = rows[rows.label != rows.predicted].sort_values("confidence", ascending=False).id.iloc[0]
    assert html.index(surest) < min(html.index(i) for i in rows.id if i in html and i != surest)


def test_several_bundles_stand_side_by_side_on_the_same_faces(work: Path, tmp_path: Path) -> None:
    result = evaluate([work / "brief", work / "long"], work / "store", out=tmp_path / "report", quiet=True)
    brief, long = result["models"]
    assert brief["accuracy"] < long["accuracy"]
    comparison = result["comparison"]
    assert (comparison["first"], comparison["second"]) == ("long", "brief")
    assert comparison["difference"] == pytest.approx(long["accuracy"] - brief["accuracy"])
    assert comparison["p_value"] < 0.01
    rows = pd.read_parquet(tmp_path / "report" / "predictions.parquet")
    assert rows.groupby("bundle").id.nunique().to_dict() == {"brief": 180, "long": 180}
    html = (tmp_path / "report" / "report.html").read_text()
    together = html[html.index("<title>Validation accuracy by time") :].partition("</svg>")[0]
    assert together.index(">long<") < together.index(">brief<")  # as in the table
    assert ">minutes of fitting<" in together
    assert html.count("<title>Validation accuracy by epoch") == 2


def test_classes_in_another_order_are_the_same_classes(work: Path, tmp_path: Path) -> None:
    straight = evaluate(work / "long", work / "store", out=tmp_path / "straight", quiet=True)
    turned = make_store(tmp_path / "turned", {"test": 60}, ["surprised", "happy", "sad"])
    source = pq.read_table(work / "store" / "data" / "part-0.parquet")
    pq.write_table(source, turned / "data" / "part-0.parquet")
    result = evaluate(work / "long", turned, out=tmp_path / "report", quiet=True)
    assert result["classes"] == ["surprised", "happy", "sad"]
    assert result["accuracy"] == straight["accuracy"]
    assert result["per_class"] == straight["per_class"]


@pytest.mark.parametrize(("split", "said"), [("train", "training accuracy"), ("val", "a little too good")])
def test_report_says_when_the_model_knows_the_faces(work: Path, tmp_path: Path, split: str, said: str) -> None:
    evaluate(work / "long", work / "store", out=tmp_path / "report", split=split, quiet=True)
    assert said in (tmp_path / "report" / "report.html").read_text()


def test_report_says_when_the_data_are_others(work: Path, tmp_path: Path) -> None:
    other = make_store(tmp_path / "other", {"test": 5}, seed=9)
    evaluate(work / "long", other, out=tmp_path / "report", quiet=True)
    html = (tmp_path / "report" / "report.html").read_text()
    assert "fitted on other data (drawn-0)" in html
    assert "15 faces decide little" in html


def test_other_classes_are_refused_by_name(work: Path, tmp_path: Path) -> None:
    other = make_store(tmp_path / "other", {"test": 3}, ["happy", "sad", "angry"])
    with pytest.raises(InputError, match=r"happy, sad, surprised.*happy, sad, angry"):
        evaluate(work / "long", other, out=tmp_path / "report", quiet=True)
    assert not (tmp_path / "report").exists()


def test_a_split_that_is_not_there_lists_those_that_are(work: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"calib.*train, val, test"):
        evaluate(work / "long", work / "store", out=tmp_path / "report", split="calib", quiet=True)
    assert not (tmp_path / "report").exists()


def test_a_full_output_is_kept_unless_it_may_be_replaced(work: Path, tmp_path: Path) -> None:
    out = tmp_path / "report"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="overwrite"):
        evaluate(work / "long", work / "store", out=out, quiet=True)
    assert (out / "mine.txt").exists()
    evaluate(work / "long", work / "store", out=out, overwrite=True, quiet=True)
    assert (out / "metrics.json").exists()


def test_no_bundle_is_refused(work: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no bundle"):
        evaluate([], work / "store", out=tmp_path / "report", quiet=True)


def test_the_lines_of_the_model_card_run(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", card_of(work / "store"), re.S)
    face = tmp_path / "face.png"
    face.write_bytes(mouth("surprised", np.random.default_rng(5)))
    exec(code.replace('"BUNDLE"', repr(str(work / "long"))).replace('"face.png"', repr(str(face))), {})
    printed = capsys.readouterr().out
    assert all(name in printed for name in CLASSES)


def test_an_evaluation_does_not_depend_on_the_other_inputs_size(work: Path, tmp_path: Path) -> None:
    """Bundles that see other pixels are predicted on their own."""
    torch.manual_seed(0)
    wide = replace(CONFIGURATION, preprocessing=Preprocessing(size=32, channels=3))
    directory = tmp_path / "wide"
    directory.mkdir()
    bundle.write(
        directory, bundle.build(wide, len(CLASSES)), wide, classes=CLASSES, temperature=1.0,
        facts={}, metrics={}, curve=pd.DataFrame({"epoch": [1]}), card="",
    )  # fmt: skip
    pair = evaluate([directory, work / "long"], work / "store", out=tmp_path / "pair", quiet=True)
    alone = evaluate(work / "long", work / "store", out=tmp_path / "alone", quiet=True)
    assert {**pair["models"][1], "report": alone["report"]} == alone
