"""What a search leaves behind: journal, trials table, leaderboard, report. All of it is enough to go on from."""

import contextlib
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from fer_scale import report, storage
from fer_scale.console import warn
from fer_scale.errors import InputError
from fer_scale.faces.store import Store
from fer_scale.learning.configuration import Configuration
from fer_scale.provenance import provenance
from fer_scale.search.progress import SearchProgress
from fer_scale.search.study import Study, new_name
from fer_scale.search.trial import Rungs

TRIALS_SCHEMA = pa.schema(
    [
        ("trial_id", pa.int64()),
        ("start", pa.string()),
        ("family", pa.string()),
        ("configuration", pa.string()),
        ("parameters", pa.int64()),
        ("input", pa.string()),
        ("weights", pa.string()),
        ("images_seen", pa.int64()),
        ("compute_seconds", pa.float64()),
        ("rung", pa.int64()),
        ("accuracy", pa.float64()),
        ("accuracy_low", pa.float64()),
        ("accuracy_high", pa.float64()),
        ("scores", pa.list_(pa.float64())),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("started", pa.float64()),
        ("ended", pa.float64()),
    ]
)
"""``scores`` holds the accuracy of every rung that was reached; ``started`` and ``ended`` are unix seconds."""

MEASURED = (
    "parameters",
    "weights",
    "images_seen",
    "compute_seconds",
    "rung",
    "accuracy",
    "accuracy_low",
    "accuracy_high",
)
SETTINGS = ("fingerprint", "families", "fixed", "seed")
"""What must be the same for a search to go on."""


class Search:
    """A search's folder, open: asks the study, keeps the rows, writes everything down as it comes."""

    def __init__(
        self,
        out: str,
        store: Store,
        families: Sequence[str],
        fixed: Mapping[str, Any],
        *,
        budget: float,
        slots: int,
        deadline: float,
        seed: int,
    ) -> None:
        self._out = out
        self._store = store
        self._settings: dict[str, Any] = {
            "name": new_name(),
            "fingerprint": store.fingerprint,
            "families": list(families),
            "fixed": dict(fixed),
            "seed": seed,
            "rungs": vars(Rungs.within(budget * slots)),
            "seconds": 0.0,
        }
        self._take_over_settings()
        self._earlier = float(self._settings["seconds"])
        self._began = time.time()
        self.deadline = deadline - self._earlier
        self.rungs = Rungs(**self._settings["rungs"])
        self.progress = SearchProgress(families, self.rungs.count, self.deadline)
        self._running: dict[int, dict[str, Any]] = {}
        self._warned = False

    def _take_over_settings(self) -> None:
        """Those of the search that is gone on with, where there is one."""
        path = storage.join(self._out, "search.json")
        if not storage.exists(path):
            return
        earlier = storage.read_json(path)
        for key in SETTINGS:
            if earlier.get(key) != self._settings[key]:
                raise InputError(
                    f"--resume of {self._out} with {key} {self._settings[key]}",
                    f"{earlier.get(key)} as the search began with",
                    "give the same store and options, or another --out",
                )
        self._settings = earlier

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="fer_scale-search-"))
            self._journal = Path(scratch) / "journal.log"
            kept = storage.join(self._out, "journal.log")
            if storage.exists(kept):
                self._journal.write_bytes(storage.read_bytes(kept))
            known = self._settings
            self._study = Study(self._journal, known["families"], known["fixed"], known["seed"], known["name"])
            self._rows: dict[int, dict[str, Any]] = {row["trial_id"]: row for row in self._study.rows}
            self._write_settings()
            self._show()
            stack.enter_context(self.progress)
            self._stack = stack.pop_all()
        return self

    def _show(self) -> None:
        self.progress.show(self._rows.values(), self._running.values())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def begun(self) -> int:
        """Trials that ended or are under way."""
        return len(self._rows) + len(self._running)

    @property
    def must_start(self) -> int:
        """Trials that are due however short the budget: a reference in each family."""
        return len(self._settings["families"])

    def reached(self) -> list[tuple[int, int, float]]:
        """(trial, rung from 1, accuracy) of every rung that an ended trial reached."""
        return [(n, rung, score) for n, row in self._rows.items() for rung, score in enumerate(row["scores"], 1)]

    def ask(self) -> tuple[int, Configuration]:
        """The next trial."""
        number, start, configuration = self._study.ask()
        seen = configuration.preprocessing
        self._running[number] = {
            **dict.fromkeys(TRIALS_SCHEMA.names),
            "trial_id": number,
            "start": start,
            "family": configuration.family,
            "configuration": json.dumps(configuration.to_dict()),
            "input": f"{seen.size}x{seen.size}x{seen.channels}",
            "scores": [],
            "images_seen": 0,
            "compute_seconds": 0.0,
            "rung": 0,
            "status": "running",
            "started": time.time(),
        }
        self._show()
        return number, configuration

    def score(self, number: int, result: Mapping[str, Any]) -> None:
        """A trial reached a rung."""
        row = self._running[number]
        if result["rung"] == row["rung"]:
            return
        row.update({key: result[key] for key in MEASURED})
        row["scores"].append(result["accuracy"])
        self._study.report(number, result["rung"], result["accuracy"])
        self._show()

    def end(self, number: int, result: Mapping[str, Any]) -> None:
        """A trial ended; from here on it is on record."""
        if result.get("rung", 0) > self._running[number]["rung"]:
            self.score(number, result)  # Ray Tune tells of a trial's last rung only together with its end
        row = self._running.pop(number)
        row.update({key: result[key] for key in MEASURED if key in result})
        row["status"], row["reason"] = self._why(row, result)
        row["ended"] = time.time()
        if str(row["weights"]).startswith("none (") and not self._warned:
            self._warned = True
            warn(f"{row['family']} starts from scratch: weights {row['weights']}")
        self._study.tell(number, row)
        self._rows[number] = row
        self.write()
        self.progress.ended(row)
        self._show()

    def _why(self, row: dict[str, Any], result: Mapping[str, Any]) -> tuple[str, str]:
        if result["status"] != "running":
            return str(result["status"]), str(result["reason"])
        if row["rung"] >= self.rungs.count:
            return "completed", "reached the highest rung"
        return "pruned", f"not in the best third at rung {row['rung']}"

    def table(self) -> pa.Table:
        """The trials table, a row a trial that ended."""
        rows = [self._rows[number] for number in sorted(self._rows)]
        return pa.Table.from_pylist(rows, schema=TRIALS_SCHEMA)

    def leaderboard(self) -> list[dict[str, Any]]:
        """The scored trials, best first; those whose interval holds the best's accuracy are marked as ties."""
        scored = [row for row in self._rows.values() if row["accuracy"] is not None]
        scored.sort(key=lambda row: (-row["accuracy"], row["parameters"]))
        board = []
        for rank, row in enumerate(scored, 1):
            tie = rank > 1 and row["accuracy_high"] >= scored[0]["accuracy"]
            board.append({"rank": rank, **row, "tie": tie, "configuration": json.loads(row["configuration"])})
        return board

    def write(self) -> None:
        """Write journal, table and leaderboard, each file at once; the journal first, for it is the truth."""
        storage.write_bytes(storage.join(self._out, "journal.log"), self._journal.read_bytes())
        sink = pa.BufferOutputStream()
        pq.write_table(self.table(), sink)
        storage.write_bytes(storage.join(self._out, "trials.parquet"), sink.getvalue().to_pybytes())
        board = {"classes": self._store.classes, **self._facts(), "trials": self.leaderboard()}
        storage.write_bytes(storage.join(self._out, "leaderboard.json"), json.dumps(board, indent=2).encode())
        self._write_settings()

    def _write_settings(self) -> None:
        self._settings["seconds"] = round(self.seconds, 1)
        storage.write_bytes(storage.join(self._out, "search.json"), json.dumps(self._settings, indent=2).encode())

    @property
    def seconds(self) -> float:
        """Wall time of the search so far, earlier runs counted in."""
        return self._earlier + time.time() - self._began

    def _facts(self) -> dict[str, Any]:
        rows = list(self._rows.values())
        return {
            "store": self._store.path,
            "fingerprint": self._store.fingerprint,
            "seed": self._settings["seed"],
            "rungs": [round(self.rungs.compute(rung), 1) for rung in range(self.rungs.count)],
            "compute_seconds": round(sum(row["compute_seconds"] for row in rows), 1),
            "seconds": round(self.seconds, 1),
            **provenance(),
        }

    def finish(self) -> dict[str, Any]:
        """Write everything, the report too; what `tune` gives back.

        Raises:
            InputError: no trial got a score.
        """
        self.write()
        board = self.leaderboard()
        if not board:
            reasons = "; ".join(sorted({str(row["reason"]) for row in self._rows.values()})) or "none began"
            raise InputError(
                f"a search without one scored trial ({reasons})",
                "at least one",
                "give a larger --time-budget",
            )
        page = report.search(pd.DataFrame(self.table().to_pylist()), self._facts())
        storage.write_bytes(storage.join(self._out, "report.html"), page.encode())
        return {
            "search": self._out,
            "best": board[0],
            "trials": len(self._rows),
            "report": storage.join(self._out, "report.html"),
            **{key: self._facts()[key] for key in ("compute_seconds", "seconds")},
        }
