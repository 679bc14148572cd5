"""`certify` on a real labelling run: the sheet, the answers, the certificate in the run's summary and report."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fer_scale.bundle import Bundle
from fer_scale.cluster import connected
from fer_scale.errors import InputError
from fer_scale.faces.images import prepare
from fer_scale.faces.sample import draw
from fer_scale.learning import epochs
from fer_scale.learning.finish import finish, predict
from fer_scale.predictor import Predictor
from fer_scale.verbs.certify import certify
from fer_scale.verbs.ingest import ingest
from fer_scale.verbs.label import label
from tests.bundles import write_bundle


@pytest.fixture(scope="module")
def session() -> Iterator[None]:
    with connected(cpus=1):
        yield


def picture(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (48, 48), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def answered(out: Path, wrong: int) -> Path:
    """The CSV with the model's own labels as the truth, but for so many rows."""
    labels = pd.read_parquet(out / "labels").set_index("id")["label"]
    sheet = pd.read_csv(out / "certificate" / "answers.csv", dtype=str, keep_default_na=False)
    sheet["truth"] = [labels[ident] for ident in sheet["id"]]
    sheet.loc[: wrong - 1, "truth"] = "other"
    path = out.parent / "filled.csv"
    sheet.to_csv(path, index=False)
    return path


def test_from_the_sheet_to_the_certificate(session: None, tmp_path: Path) -> None:
    root, out = tmp_path / "faces", tmp_path / "out"
    root.mkdir()
    for seed in range(60):
        (root / f"{seed:02d}.png").write_bytes(picture(seed))
    (root / "empty.png").touch()
    bundle = write_bundle(tmp_path / "bundle")
    with pytest.raises(InputError, match="a labelling run that has ended"):
        certify(out)
    assert label(bundle, root, out, quiet=True)["certificate"] is None
    assert "this run has no certificate" in (out / "report.html").read_text()
    with pytest.raises(InputError, match="where none was drawn"):
        certify(out, answers=bundle / "config.json", quiet=True)

    drawn = certify(out, sample=40, seed=3, quiet=True)
    assert (drawn["sample"], drawn["population"]) == (40, 60)
    rows = pd.read_csv(drawn["answers"], dtype=str, keep_default_na=False)
    assert list(rows) == ["number", "id", "face", "truth"], "what the model answered is not shown"
    assert len(set(rows["id"])) == 40
    assert not any(rows["truth"])
    page = Path(drawn["sheet"]).read_text()
    assert page.count("data:image/png;base64,") == 40
    assert "http://" not in page.replace("http://www.w3.org", "")
    with pytest.raises(InputError, match="is there; expected its answers, or --overwrite"):
        certify(out, quiet=True)
    certify(out, sample=40, seed=3, overwrite=True, quiet=True)
    again = pd.read_csv(drawn["answers"], dtype=str, keep_default_na=False)
    assert again["id"].tolist() == rows["id"].tolist(), "the seed decides what is drawn"

    with pytest.raises(InputError, match="40 rows without an answer"):
        certify(out, answers=drawn["answers"], quiet=True)
    filled = answered(out, wrong=3)
    filled.write_text(filled.read_text().replace(",other", ",angry", 1))
    with pytest.raises(InputError, match="the answer 'angry'; expected one of happy, sad, surprised, neutral, other"):
        certify(out, answers=filled, quiet=True)
    found = certify(out, answers=answered(out, wrong=3), quiet=True)
    assert (found["error"], found["wrong"], found["sample"], found["population"]) == (0.075, 3, 40, 60)
    assert found["interval"] == [pytest.approx(0.0157, abs=1e-4), pytest.approx(0.2039, abs=1e-4)]
    assert (found["method"], found["of"], found["kept"]) == ("exact binomial", "all", None)
    assert found == json.loads((out / "certificate.json").read_text())
    summary = json.loads((out / "summary.json").read_text())
    assert summary["certificate"] == {**found, "current": True}
    assert "The certificate" in (out / "report.html").read_text()

    (root / "new.png").write_bytes(picture(100))
    assert label(bundle, root, out, quiet=True)["certificate"]["current"] is False
    assert "it is about those before" in (out / "report.html").read_text()
    other = rows["id"][1]
    (root / other).write_bytes(picture(101))
    with pytest.raises(InputError, match=rf"1 labelled pictures that .* no longer has as they were, {other} for one"):
        certify(out, sample=61, seed=3, overwrite=True, quiet=True)
    label(bundle, root, out, quiet=True)
    (root / "newer.png").write_bytes(picture(102))  # which changes the unit around it
    assert certify(out, sample=61, seed=3, overwrite=True, quiet=True)["sample"] == 61
    (root / "newer.png").unlink()
    lost = rows["id"][0]
    (root / lost).unlink()
    with pytest.raises(InputError, match=rf"1 labelled pictures that .* no longer has as they were, {lost} for one"):
        certify(out, sample=60, seed=3, overwrite=True, quiet=True)
    label(bundle, root, out, quiet=True)
    assert certify(out, sample=60, seed=3, overwrite=True, quiet=True)["population"] == 60


def test_of_a_promise_the_accepted_labels_are_judged(session: None, tmp_path: Path) -> None:
    faces = [picture(n) for n in range(300)]
    model = Predictor.load(Bundle.load(write_bundle(tmp_path / "same")), "onnx")
    confidences = model.probabilities(np.stack([prepare(face, model.preprocessing) for face in faces])).max(axis=1)
    confidence = np.random.default_rng(0).permutation(np.resize(confidences, 1200))
    rest = (1 - confidence) / 3
    known = pd.DataFrame({"split": ["val", "calib"] * 600, "id": [str(n) for n in range(1200)]})
    known["label"] = np.where(confidence >= np.median(confidences), "happy", "sad")
    known = known.assign(prob_happy=confidence, prob_sad=rest, prob_surprised=rest, prob_neutral=rest)
    bundle, out = write_bundle(tmp_path / "bundle", calibration=known), tmp_path / "out"
    table = pd.DataFrame({"key": [f"k{n}" for n in range(300)], "image": faces})
    table.to_parquet(tmp_path / "faces.parquet")
    run = label(bundle, tmp_path / "faces.parquet", out, id_column="key", max_error=0.05, quiet=True)
    assert 0 < run["accepted"] < 300
    drawn = certify(out, sample=1000, quiet=True)
    assert drawn["sample"] == drawn["population"] == run["accepted"]
    labels = pd.read_parquet(out / "labels").set_index("id")
    ids = pd.read_csv(drawn["answers"], dtype=str)["id"]
    assert labels.loc[ids, "accepted"].all()
    assert certify(out, answers=answered(out, 0), quiet=True)["kept"] is True
    assert certify(out, answers=answered(out, run["accepted"]), quiet=True)["kept"] is False
    assert "was not kept" in (out / "report.html").read_text()


def test_what_a_model_takes_for_other_is_never_accepted(session: None, tmp_path: Path) -> None:
    draw(tmp_path / "faces", 600, seed=1)
    three = ["happy", "sad", "surprised"]
    ingest(tmp_path / "faces", tmp_path / "store", classes=three, others="other", quiet=True)
    small = {"variant": "slim10", "width": 0.25, "weights": "none", "dense": "none", "dropout": 0.0}
    configuration = {
        "family": "resnet",
        "network": small,
        "recipe": {"batch_size": 16, "lr": 6e-3, "augmentation": 0.3, "ema": 0.9},
    }
    where = {"store": str(tmp_path / "store"), "checkpoints": str(tmp_path / "fit"), "init_from": None}
    how: dict[str, Any] = {
        "epochs": 10,
        "seconds": None,
        "began": 0.0,
        "seed": 0,
        "threads": 1,
        "gpu": False,
        "streamed": False,
    }
    plan = epochs.Plan(configuration=configuration, **where, **how)
    epochs.run(plan)
    (tmp_path / "bundle").mkdir()
    finish(plan, predict(plan), tmp_path / "bundle")
    out = tmp_path / "out"
    run = label(tmp_path / "bundle", tmp_path / "faces", out, include="*.png", max_error=0.4, quiet=True)
    rows = pd.read_parquet(out / "labels")
    assert run["labels"]["other"] > 20, "the model knows the class"
    assert not rows.loc[rows["label"] == "other", "accepted"].any()
    assert rows["accepted"].sum() == run["accepted"] > 20
    assert not run["drift"]["found"], "these are the faces that calib was drawn from"
