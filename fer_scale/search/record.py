"""The rows of a search's trials, and the tables and pages that they are written into."""

import json
import statistics
import time
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fer_scale import storage
from fer_scale.faces.store import Store
from fer_scale.provenance import provenance
from fer_scale.search import price, rows
from fer_scale.search.page import page
from fer_scale.search.rungs import Rungs
from fer_scale.search.study import Fit

WRITING = 0.05
"""Share of the time that writing the tables may take; the journal is written in any case."""


class Record:
    """What is known of each trial, as a row; trials table, leaderboard and report are made from the rows.

    The files are written and never read: a search that goes on makes the rows anew from its journal.
    """

    def __init__(self, out: str, store: Store, rungs: Rungs, *, seed: int, price_per_hour: float | None) -> None:
        self.rows: dict[int, dict[str, Any]] = {}
        """By trial, as in :data:`rows.TRIALS_SCHEMA <fer_scale.search.rows.TRIALS_SCHEMA>`."""
        self._out = out
        self._store = store
        self._rungs = rungs
        self._seed = seed
        self._price_per_hour = price_per_hour
        self._confirmed: dict[tuple[int, int], Mapping[str, Any]] = {}
        """Results on a fresh seed, by trial and rung."""
        self._lost: list[float] = []
        self._written = (0.0, 0.0)

    def begins(self, fit: Fit, started: float) -> None:
        """A fit begins, its trial's first or another."""
        row = self.rows.setdefault(fit.trial, rows.begun(fit, started))
        if not fit.confirm:
            row["status"], row["reason"] = "running", f"fitted for rung {fit.rung}"

    def ends(self, fit: Fit, result: Mapping[str, Any]) -> dict[str, Any]:
        """A fit ended; the row of its trial."""
        row = self.rows[fit.trial]
        rows.take_in(row, fit, result, self._rungs)
        if fit.confirm and result.get("accuracy") is not None:
            self._confirmed[fit.trial, fit.rung] = result
        rows.confirm(row, self._confirmed.get((fit.trial, row["rung"])))
        if "seconds" in result:  # between the choice of a fit and its first line, and from its last to here
            self._lost.append(result["ended"] - result["started"] - result["seconds"])
        return row

    def priced(self, trial: int, speed: float) -> None:
        """The images a second of a trial's network were measured."""
        money = price.per_million(speed, self._price_per_hour)
        self.rows[trial].update(images_per_second=speed, price_per_million=money)

    def close(self) -> None:
        """No fit ends any more: a trial of which one began and did not come to its end has a row that says so."""
        for row in self.rows.values():
            if row["status"] == "running":
                row["status"] = "failed" if row["accuracy"] is None else "time budget"
                row["reason"] += ", and that did not end in time"
                row["ended"] = row["ended"] or time.time()

    def ended(self) -> list[dict[str, Any]]:
        """The rows of trials that have an ended fit."""
        return [self.rows[number] for number in sorted(self.rows) if self.rows[number]["ended"] is not None]

    def table(self) -> pa.Table:
        """The trials table, a row a trial."""
        ended = self.ended()
        rows.mark_ties(rows.ranked(ended))
        return pa.Table.from_pylist(ended, schema=rows.TRIALS_SCHEMA)

    def leaderboard(self) -> list[dict[str, Any]]:
        """The scored trials, best first; those whose interval holds the best's accuracy are marked as ties."""
        ranked = rows.ranked(self.ended())
        rows.mark_ties(ranked)
        return [
            {"rank": rank, **row, "configuration": json.loads(row["configuration"])}
            for rank, row in enumerate(ranked, 1)
        ]

    def facts(self, seconds: float) -> dict[str, Any]:
        """What holds for the whole search, after so many seconds of wall time."""
        return {
            "lost_seconds_a_fit": round(statistics.median(self._lost), 2) if self._lost else None,
            "store": self._store.path,
            "fingerprint": self._store.fingerprint,
            "seed": self._seed,
            "price_per_hour": self._price_per_hour,
            "rungs": [round(self._rungs.compute(rung), 1) for rung in range(1, self._rungs.count + 1)],
            "compute_seconds": round(sum(row["compute_seconds"] for row in self.rows.values()), 1),
            "seconds": round(seconds, 1),
            **provenance(),
        }

    @property
    def due(self) -> bool:
        """Whether the tables may be written again without taking too much of the time."""
        last, took = self._written
        return time.time() - last >= took / WRITING

    def write(self, seconds: float) -> None:
        """Write table and leaderboard, each file at once."""
        began = time.time()
        sink = pa.BufferOutputStream()
        pq.write_table(self.table(), sink)
        storage.write_bytes(storage.join(self._out, "trials.parquet"), sink.getvalue().to_pybytes())
        board = {"classes": self._store.classes, **self.facts(seconds), "trials": self.leaderboard()}
        storage.write_bytes(storage.join(self._out, "leaderboard.json"), json.dumps(board, indent=2).encode())
        self._written = (time.time(), time.time() - began)

    def write_report(self, seconds: float, importances: Mapping[str, float]) -> str:
        """Write the page to look at; where it is."""
        path = storage.join(self._out, "report.html")
        html = page(self.table().to_pylist(), self.facts(seconds), importances)
        storage.write_bytes(path, html.encode())
        return path
