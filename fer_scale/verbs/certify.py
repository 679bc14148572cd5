"""certify: how many labels of a run are wrong, from a random sample that a person judges."""

import hashlib
import json
import os
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from fer_scale import report, storage
from fer_scale.arguments import check_seed
from fer_scale.console import say, set_quiet, warn
from fer_scale.errors import InputError
from fer_scale.faces.labels import OTHER
from fer_scale.labelling import certification, ledger, results
from fer_scale.labelling.certification import FOLDER, Sample
from fer_scale.labelling.ledger import Ledger
from fer_scale.labelling.sources import Source
from fer_scale.learning.certificate import LEVEL, estimate
from fer_scale.lease import Lease

PathLike = str | os.PathLike[str]


def certify(
    run: PathLike,
    *,
    sample: int = 200,
    answers: PathLike | None = None,
    overwrite: bool = False,
    seed: int = 0,
    quiet: bool = False,
) -> dict[str, Any]:
    """Draw a sample of a labelling run for a person to judge; with the answers, measure the run's error.

    The first call writes RUN/certificate/sheet.html, the pictures, and RUN/certificate/answers.csv, whose column
    ``truth`` is to be filled in (the page does it, too). The second, with ``answers``, writes RUN/certificate.json and
    puts it into the run's summary and report. Where the run accepts labels (``--max-error``), both are about these.

    Args:
        run: the output of `label`, finished.
        sample: labels to draw.
        answers: the CSV that was filled in.
        overwrite: draw anew where a sheet is there already.
        seed: of the draw.
        quiet: say nothing on stderr.

    Returns:
        Of the first call sheet, answers, sample and population; of the second what certificate.json holds: error,
        interval, level, method, sample, wrong, population, of (accepted or all), max_error and kept (whether the
        promise was: true, false, or null where the sample cannot tell).

    Raises:
        InputError: no finished run, nothing to draw from, a sheet that is there, pictures that have gone, or answers
            that are not to this sample.
    """
    set_quiet(quiet)
    check_seed(seed)
    out = storage.normal(run)
    manifest = ledger.manifest(out)
    if manifest is None or not storage.exists(storage.join(out, "summary.json")):
        raise InputError(f"{out}", "a labelling run that has ended (with a summary.json)", "run fer-scale label first")
    if sample < 1:
        raise InputError(f"sample={sample}", "1 label or more", "ask for 200, say")
    with Lease(out, manifest["run_id"]) as lease:
        entries = Ledger(out, lease.check)
        if answers is None:
            return _draw(out, manifest, entries, sample, overwrite, seed)
        return _measure(out, manifest, entries, storage.read_bytes(answers))


def _words(manifest: dict[str, Any]) -> list[str]:
    """What a person may answer: a class, or other for everything else."""
    classes = manifest["settings"]["classes"]
    return [*classes, *([] if OTHER in classes else [OTHER])]


def _draw(out: str, manifest: dict[str, Any], entries: Ledger, size: int, overwrite: bool, seed: int) -> dict[str, Any]:
    paths = {name: storage.join(out, FOLDER, name) for name in ("sheet.html", "answers.csv")}
    if storage.exists(paths["answers.csv"]) and not overwrite:
        raise InputError(
            f"{paths['answers.csv']} is there", "its answers, or --overwrite",
            f"give them: fer-scale certify {out} --answers {paths['answers.csv']}",
        )  # fmt: skip
    settings = manifest["settings"]
    sample = certification.draw(out, entries, size, seed)
    if len(sample.rows) < size:
        say(f"the run has {sample.population} such labels: all of them are in the sample")
    named = {name: settings[name] for name in ("image_column", "id_column", "include", "uri_column")}
    source = Source.open(settings["source"], **named)
    found = certification.pictures(out, entries, source, settings["unit_images"], sample.rows)
    keys = [(row["id"], row["face"]) for row in sample.rows[["id", "face"]].to_dict("records")]
    gone = [ident for ident, face in keys if (ident, face) not in found]
    if gone:
        raise InputError(
            f"{len(gone)} labelled pictures that {settings['source']} no longer has as they were, {gone[0]} for one",
            "the pictures that were labelled",
            "run the same fer-scale label command, which drops or labels them anew, and draw again",
        )
    page = report.render(
        "certify.html.j2",
        title="What do these faces show?",
        pictures=[{"src": found[ident, face], "id": ident, "face": face} for ident, face in keys],
        words=_words(manifest),
        run_id=manifest["run_id"],
        out=out,
        drawn=hashlib.blake2b(
            "\0".join(sample.rows["id"]).encode(), digest_size=6
        ).hexdigest(),  # answers are to this sample
    )
    certification.save(out, sample, {"seed": seed, "run_id": manifest["run_id"]})
    storage.write_bytes(paths["sheet.html"], page.encode())
    storage.write_bytes(paths["answers.csv"], certification.blank(sample))
    say(f"look at {paths['sheet.html']} and fill in {paths['answers.csv']}, then add --answers FILE")
    return {"run": out, "sheet": paths["sheet.html"], "answers": paths["answers.csv"],
            "sample": len(sample.rows), "population": sample.population}  # fmt: skip


def _measure(out: str, manifest: dict[str, Any], entries: Ledger, text: bytes) -> dict[str, Any]:
    sample, facts = certification.load(out)
    certificate = _certificate(sample, manifest, text) | {"seed": facts["seed"]}
    if sample.version != results.labels_version(entries):
        warn("labels were added or changed since the sample was drawn; the certificate is about those before")
    path = storage.join(out, results.CERTIFICATE)
    storage.write_bytes(path, (json.dumps(certificate, indent=2) + "\n").encode())
    new = storage.read_json(storage.join(out, "summary.json"))["new"]
    results.publish(out, entries, manifest, new)
    low, high = (100 * value for value in certificate["interval"])
    say(
        f"{100 * certificate['error']:.1f} % of the {certificate['of']} labels are wrong, {low:.1f} to {high:.1f} % "
        f"with {LEVEL:.0%} confidence ({certificate['method']}): {path}"
    )
    return certificate


def _certificate(sample: Sample, manifest: dict[str, Any], text: bytes) -> dict[str, Any]:
    truth = certification.judged(sample, text, _words(manifest))
    wrong = (truth != sample.rows["label"]).to_numpy(bool)
    found = estimate(wrong, 1.0 - sample.rows["confidence"].to_numpy(float), sample.mean_doubt)
    promised = manifest["settings"].get("max_error")
    kept = None if promised is None else True if found.high <= promised else False if found.low > promised else None
    values = asdict(found)
    return {
        "error": values["error"],
        "interval": [values["low"], values["high"]],
        "level": LEVEL,
        "method": values["method"],
        "sample": len(wrong),
        "wrong": int(wrong.sum()),
        "population": sample.population,
        "of": "all" if promised is None else "accepted",
        "max_error": promised,
        "kept": kept,
        "model_id": ledger.model_id(manifest),
        "run_id": manifest["run_id"],
        "labels_version": sample.version,
        "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }
