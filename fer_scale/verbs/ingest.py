"""``fer-scale ingest``: labelled faces from anywhere into a face store."""

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from fer_scale import storage
from fer_scale.arguments import check_seed
from fer_scale.console import say, set_quiet, warn
from fer_scale.errors import InputError
from fer_scale.faces.images import PREPROCESSING_VERSION
from fer_scale.faces.index import CONFLICT, DUPLICATE, KEPT, TRAIN, Decision, Rows, decide, fingerprint
from fer_scale.faces.labels import Labels
from fer_scale.faces.records import Columns
from fer_scale.faces.sources import open_source
from fer_scale.faces.spool import Spool
from fer_scale.faces.store import SPLITS, STORE_VERSION
from fer_scale.faces.votes import Votes
from fer_scale.faces.write import write_data, write_set_aside
from fer_scale.provenance import versions

DEFAULT_CLASSES = ("happy", "sad", "surprised", "neutral")


def ingest(
    source: storage.PathLike,
    store: storage.PathLike,
    *,
    classes: Sequence[str] = DEFAULT_CLASSES,
    rename: Mapping[str, str] | None = None,
    others: str = "drop",
    split_column: str | None = None,
    split_map: Mapping[str, str] | None = None,
    image_column: str = "image",
    label_column: str = "label",
    id_column: str | None = None,
    votes: storage.PathLike | None = None,
    votes_classes: Sequence[str] | None = None,
    label_from_votes: bool = False,
    keep_duplicates: bool = False,
    overwrite: bool = False,
    seed: int = 0,
    quiet: bool = False,
) -> dict[str, Any]:
    """Read labelled faces, check each, and write a face store with its splits.

    Args:
        source: class folders, a zip or tar of them, a CSV, a Parquet file or a folder of those.
        store: the folder to write, local or s3://; new or empty unless ``overwrite``.
        classes: the classes to keep, in the order that networks will know them by.
        rename: the source's labels to ours, e.g. ``{"surprise": "surprised"}``.
        others: ``drop`` labels that are not asked for, or keep them as one more class, ``other``.
        split_column: of a table, the column that names the split.
        split_map: names of splits in the source to train, val, calib, test.
        image_column: of a table, the encoded picture, pixel text, or a path.
        label_column: of a table, the label.
        id_column: of a table, a unique name; without it ``<file>#<row>``.
        votes: annotators' votes by id, a CSV or Parquet; ``train`` then learns their shares, not one label.
        votes_classes: what the annotators could vote for, in the order of the votes; ``rename`` maps these names too.
        label_from_votes: the option with most votes is the label; rows where several have are rejected.
        keep_duplicates: keep repeats of the same pixels that lie within one split.
        overwrite: replace what is at ``store``.
        seed: decides which pictures are carved into splits that the source does not name, and the order of rows.
        quiet: no progress, no remarks.

    Returns:
        store; read, kept, duplicates, conflicts, dropped, rejected (rows: read is the sum of the others);
        classes, splits (rows by split and class), fingerprint, seconds; with votes also votes: of the kept rows those
        joined, elsewhere (most of their votes are for other classes) and unmatched.

    Raises:
        InputError: wrong input; nothing was written.
    """
    began = time.monotonic()
    set_quiet(quiet)
    check_seed(seed)
    labels = Labels.of(classes, rename or {}, others)
    columns = Columns(
        image=image_column,
        label=label_column,
        id=id_column,
        split=split_column,
        split_map=dict(split_map or {}),
    )
    source, store = storage.normal(source), storage.normal(store)
    _check_apart(source, store)
    storage.check_output(store, overwrite, inputs=[source, *([storage.normal(votes)] if votes else [])])
    ballots = _votes(votes, votes_classes, label_from_votes, columns, labels)
    opened = open_source(source, columns, {*labels.classes, *labels.rename})
    ahead = opened.labels()
    if ahead is not None and not label_from_votes:
        labels.check(ahead)
    for remark in opened.remarks:
        warn(remark)
    with storage.publishing(store, overwrite) as staging:
        spool = Spool(labels, staging)
        rows = spool.fill(opened, remote=storage.is_s3(source), relabel=ballots if label_from_votes else None)
        decision = decide(rows, keep_duplicates=keep_duplicates, seed=seed)
        spool.end_rejects(rows, decision)
        labels.check(spool.seen, _kept_by_class(rows, decision, labels))
        written = write_data(spool.folder, staging / "data", rows, decision, labels.classes, ballots, seed)
        shutil.rmtree(spool.folder)
        write_set_aside(staging / "set_aside", rows, decision, labels.classes)
        manifest = {
            **_manifest(spool, rows, decision, labels, ballots, written),
            "seed": seed,
            "source": source,
            "settings": {
                "rename": dict(labels.rename),
                "others": others,
                "keep_duplicates": keep_duplicates,
                "label_from_votes": label_from_votes,
            },
        }
        (staging / "manifest.json").write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
    _remark(written["splits"])
    return {
        "store": store,
        **manifest["counts"],
        **{name: manifest[name] for name in ("classes", "fingerprint", "votes") if name in manifest},
        "seconds": round(time.monotonic() - began, 3),
    }


def _votes(
    path: storage.PathLike | None,
    names: Sequence[str] | None,
    needed: bool,
    columns: Columns,
    labels: Labels,
) -> Votes | None:
    if needed and path is None and names is None:
        expected = "--votes FILE and --votes-classes A,B,... too"
        raise InputError("--label-from-votes without votes", expected, "give both, or leave it out")
    if (path is None) != (names is None):
        received = f"{'no' if path is None else 'a'} votes file and {'no' if names is None else 'some'} votes classes"
        raise InputError(received, "both or neither", "give --votes FILE and --votes-classes A,B,...")
    if path is None or names is None:
        return None
    return Votes.read(storage.normal(path), list(names), columns.id or "id", labels)


def _manifest(
    spool: Spool, rows: Rows, decision: Decision, labels: Labels, ballots: Votes | None, written: dict[str, Any]
) -> dict[str, Any]:
    """What the store's manifest says of its rows, and of what became of the others."""
    return {
        "version": STORE_VERSION,
        "classes": labels.classes,
        "counts": {**_counts(spool, decision), "splits": written["splits"]},
        "rejected_reasons": dict(spool.reasons),
        "labels_seen": dict(spool.seen.most_common()),
        "fingerprint": fingerprint(rows, decision, labels.classes, ballots),
        "image_size": {"width": written["width"], "height": written["height"]},
        **_joined(ballots, rows, decision),
        "versions": {**versions(("pillow", "pyarrow")), "preprocessing": PREPROCESSING_VERSION},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _joined(votes: Votes | None, rows: Rows, decision: Decision) -> dict[str, Any]:
    if votes is None:
        return {}
    tally = votes.tally(rows.ids.filter(pa.array(decision.status == KEPT)).to_pylist())
    say("votes " + "  ".join(f"{name} {number:,}" for name, number in tally.items()))
    if not tally["joined"]:
        warn("no row's id is in the votes file, or all votes are for other classes: rows keep their labels alone")
    return {"votes": tally}


def _check_apart(source: str, store: str) -> None:
    if store.startswith(f"{source.rstrip('/')}/") or store == source:
        raise InputError(f"STORE {store} lies inside SOURCE {source}", "a folder outside of it", "choose another STORE")


def _kept_by_class(rows: Rows, decision: Decision, labels: Labels) -> dict[str, int]:
    numbers = np.bincount(rows.label[decision.status == KEPT], minlength=len(labels.classes))
    return {name: int(number) for name, number in zip(labels.classes, numbers, strict=True)}


def _counts(spool: Spool, decision: Decision) -> dict[str, int]:
    """Rows by what became of them; `read` is the sum of the others."""
    of = np.bincount(decision.status, minlength=4)
    counts = {
        "read": spool.read,
        "kept": int(of[KEPT]),
        "duplicates": int(of[DUPLICATE]),
        "conflicts": int(of[CONFLICT]),
        "dropped": spool.dropped,
        "rejected": spool.reasons.total(),
    }
    if counts["read"] != sum(counts.values()) - counts["read"]:
        raise RuntimeError(f"the counts do not add up: {counts}")
    return counts


def _remark(splits: dict[str, dict[str, int]]) -> None:
    """Say what each split holds, and which class is missing where."""
    width = max(len(f"{number:,}") for by_class in splits.values() for number in by_class.values())
    for split, by_class in splits.items():
        say(f"{split:6}" + "  ".join(f"{name} {number:>{width},}" for name, number in by_class.items()))
    if not sum(splits[SPLITS[TRAIN]].values()):
        warn("no picture is in train: the store can be evaluated on, not fitted to")
    for split, by_class in splits.items():
        empty = [name for name, number in by_class.items() if not number]
        if empty and sum(by_class.values()):
            warn(f"{split} has no picture of {', '.join(empty)}")
