"""The end of a labelling run: its files settled, counts added up and checked, the summary and the report."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

from fer_scale import figures, report, storage
from fer_scale.errors import FerScaleError
from fer_scale.labelling import suspects
from fer_scale.labelling.ledger import Entry, Ledger, model_id, origin
from fer_scale.labelling.merging import paths, settle_view
from fer_scale.labelling.parts import notes_path
from fer_scale.learning import drift
from fer_scale.learning.drift import BINS, Answered

COUNTS = ("inputs", "labelled", "no_face", "errors", "faces", "duplicates")
CERTIFICATE = "certificate.json"
"""What `certify` found of the run, in its folder."""
SHOWN = 12
"""Pictures a report shows of the surest and of the least sure."""
PHOTOGRAPHS = 6
"""That it shows with boxes around their faces."""
SAMPLED = 128
"""Units whose examples are looked through for them, evenly spread."""


def parts(out: str, kind: str = "labels") -> set[str]:
    """Names of the parts of a kind that work units published, without their endings."""
    return {storage.name(path).rpartition(".")[0] for path in paths(storage.join(out, "ledger", kind))}


def settle(out: str, ledger: Ledger, current: Iterable[str], run: dict[str, Any]) -> None:
    """Leave exactly what the current listing has: the ledger first, then the view, then void parts.

    Args:
        current: keys of all units of the source as it was listed now.
        run: the manifest.

    Raises:
        LeaseLostError: another run has taken over; nothing was written or deleted since.
    """
    ledger.keep(current)
    entries = ledger.entries.values()
    kinds = ["labels", "errors", *(["no_face"] if run["settings"]["faces"] else [])]
    settle_view(out, kinds, entries, origin(run), ledger.check)
    named = {entry["part"] for entry in entries}
    ledger.check()
    storage.delete(storage.join(out, "ledger", suspects.FOLDER))
    for kind in (*kinds, "units"):
        keep = {entry["part"] for entry in entries if entry[kind]} if kind in ("errors", "no_face") else named
        there = paths(storage.join(out, "ledger", kind))
        storage.delete_files(
            [path for path in there if storage.name(path).rpartition(".")[0] not in keep], ledger.check
        )


def labels_version(ledger: Ledger) -> str:
    """A hash of which work units are labelled: another one where the run has labelled anything since."""
    names = sorted(entry["part"] for entry in ledger.entries.values())
    return hashlib.blake2b("\0".join(names).encode(), digest_size=8).hexdigest()


def _certified(out: str, ledger: Ledger) -> dict[str, Any] | None:
    """The run's certificate, and whether it is about the labels as they are now."""
    path = storage.join(out, CERTIFICATE)
    if not storage.exists(path):
        return None
    found: dict[str, Any] = storage.read_json(path)
    return {**found, "current": found["labels_version"] == labels_version(ledger)}


def summarise(ledger: Ledger, run: dict[str, Any], new: int, certificate: dict[str, Any] | None) -> dict[str, Any]:
    """The counts of everything that is labelled now.

    Args:
        run: the manifest.
        new: images that this command answered for.
        certificate: of the run, or None where there is none.

    Raises:
        FerScaleError: inputs = labelled + no_face + errors does not hold.
    """
    entries = list(ledger.entries.values())
    counts = {name: sum(entry[name] for entry in entries) for name in COUNTS}
    if counts["inputs"] != counts["labelled"] + counts["no_face"] + counts["errors"]:
        raise FerScaleError(f"the counts do not add up: {counts}")
    promised = run["settings"].get("acceptance")
    accepted = sum(entry["accepted"] for entry in entries) if promised else 0
    return {
        **counts,
        **({"accepted": accepted, "review": counts["faces"] - accepted} if promised else {}),
        **_by_whom(entries, run),
        "new": new,
        "images_per_second": round(ledger.labelled_images / max(ledger.seconds, 1e-3), 2),
        "seconds": round(ledger.seconds, 3),
        "model_id": model_id(run),
        "run_id": run["run_id"],
        "labels": dict(_added(entries, "shares")),
        "reasons": dict(_added(entries, "reasons")),
        "drift": _drift(entries, run),
        "certificate": certificate,
    }


def _by_whom(entries: list[Entry], run: dict[str, Any]) -> dict[str, int]:
    """Of a cascade, how many of the inferred images each network answered."""
    names = ("first", "second") if run["settings"].get("cascade") else ()
    return {f"answered_by_{name}": sum(entry.get(name, 0) for entry in entries) for name in names}


def _drift(entries: list[Entry], run: dict[str, Any]) -> dict[str, Any] | None:
    """How far the answers are from those on calib; None where the bundle did not tell, or there are none."""
    if not run.get("calib"):
        return None
    found = drift.compare(Answered(_histogram(entries), dict(_added(entries, "shares"))), Answered(**run["calib"]))
    return {**asdict(found), "remark": found.remark if found.found else ""} if found else None


def _histogram(entries: list[Entry]) -> list[int]:
    return [sum(column) for column in zip(*(entry["histogram"] for entry in entries), strict=True)] or [0] * BINS


def _added(entries: list[Entry], name: str) -> Counter[str]:
    total: Counter[str] = Counter()
    for entry in entries:
        total.update(entry[name])
    return total


def publish(out: str, ledger: Ledger, run: dict[str, Any], new: int) -> dict[str, Any]:
    """Write ``report.html``, then ``summary.json``, which says that all is complete; gives the summary."""
    ledger.check()
    summary = summarise(ledger, run, new, _certified(out, ledger))
    page = _report(out, ledger, run, summary).encode()
    for name, data in (("report.html", page), ("summary.json", (json.dumps(summary, indent=2) + "\n").encode())):
        ledger.check()
        storage.write_bytes(storage.join(out, name), data)
    return summary


def _report(out: str, ledger: Ledger, run: dict[str, Any], summary: dict[str, Any]) -> str:
    entries = list(ledger.entries.values())
    classes, calib = run["settings"]["classes"], run.get("calib") or {"histogram": [], "labels": {}}
    rows = "faces" if run["settings"].get("faces") else "images"
    return report.render(
        "label.html.j2",
        title="Labels",
        summary=summary,
        settings=run["settings"],
        promised=run["settings"].get("acceptance"),
        classes=[(name, summary["labels"].get(name, 0), calib["labels"].get(name, 0)) for name in classes],
        calib_rows=sum(calib["labels"].values()),
        large=(drift.LARGE_KS, drift.LARGE_PSI),
        reasons=sorted(summary["reasons"].items(), key=lambda item: (-item[1], item[0])),
        confidence=_confidence(_histogram(entries), calib["histogram"], rows),
        **_examples(out, entries),
    )


def _confidence(histogram: list[int], calib: list[int], rows: str) -> Any:
    """The run's confidences, and calib's as a line that is scaled to as many; ``rows`` is what is counted."""
    with figures.plot("Confidence of all labels", "confidence", rows, (5.0, 2.8)) as drawing:
        axes = drawing.axes
        edges = [at / BINS for at in range(BINS)]
        axes.bar(edges, histogram, width=0.92 / BINS, align="edge", color=figures.colour(0), alpha=0.8)
        if any(calib):
            scale = sum(histogram) / sum(calib)
            line = [scale * count for count in calib]
            axes.stairs(line, [*edges, 1.0], color=figures.INK, linewidth=1.1, label="calib, scaled")
            axes.legend(loc="upper left")
        axes.set_xlim(0, 1)
        axes.grid(visible=False, axis="x")
        axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    return drawing.svg


def _examples(out: str, entries: list[Entry]) -> dict[str, Any]:
    """The surest and the least sure pictures among those that a sample of units kept."""
    step = max(1, len(entries) // SAMPLED)
    with ThreadPoolExecutor(16) as pool:
        notes = list(pool.map(lambda entry: storage.read_json(notes_path(out, entry["part"])), entries[::step]))
    found: dict[str, Any] = {}
    for name, sign in (("surest", -1), ("unsurest", 1)):
        kept = {(example["id"], example["face"]): example for note in notes for example in note[name]}.values()
        best = sorted(kept, key=lambda example: (sign * example["confidence"], example["id"]))[:SHOWN]
        found[name] = [
            {"src": f"data:image/png;base64,{e['png']}", "id": e["id"], "said": e["label"], "truth": "",
             "confidence": e["confidence"]}
            for e in best
        ]  # fmt: skip
    every = [one for note in notes for one in note["photographs"]]
    found["photographs"] = sorted(every, key=lambda one: (-len(one["faces"]), one["id"]))[:PHOTOGRAPHS]
    return found
