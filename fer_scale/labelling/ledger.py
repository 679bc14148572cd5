"""What a labelling run has done: its manifest, and the ledger of finished units."""

import bisect
import json
import re
import secrets
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from typing import Any

from fer_scale import storage
from fer_scale.errors import InputError
from fer_scale.labelling.units import Unit
from fer_scale.lease import LeaseLostError

MANIFEST_VERSION = 2
MOST_FORMER = 64
"""Parts looked through for a unit's answers. More only meet it where a manifest is not sorted; then reading them
would cost more than to label anew."""
COMMIT_SECONDS = 2.0
"""Published units are entered at least this often while they come."""
DELIVERY = re.compile(r"/\d{4}-\d\d-\d\dT\d\d-\d\dZ/manifest\.json$")
"""Of S3 Inventory: each has a folder of its own, named by its time."""
TAKEN = "another run has taken over this output; this one has stopped"
Entry = dict[str, Any]
"""What `fer_scale.labelling.worker.Worker.label` returns."""


def manifest(out: str) -> dict[str, Any] | None:
    """What fixed the run in ``out``, or None where there is none yet.

    Raises:
        InputError: the folder holds something else, or a run of another version.
    """
    path = storage.join(out, "run.json")
    if not storage.exists(path):
        return None
    found = storage.read_json(path)
    if not isinstance(found, dict) or found.get("version") != MANIFEST_VERSION:
        raise InputError(
            f"{path}, which is no labelling run of version {MANIFEST_VERSION}", "a run of this version",
            "label into another folder, or pass --overwrite",
        )  # fmt: skip
    return found


def fix(out: str, settings: dict[str, Any], run_id: str, calib: dict[str, Any] | None = None) -> dict[str, Any]:
    """Write the manifest of a new run, or compare with that of the run which is there.

    Args:
        settings: what decides the answers; a resume must have the same.
        run_id: of a new run.
        calib: what the network answered on calib (`learning.drift`), kept for a new run.

    Raises:
        InputError: the run in ``out`` has another model, preprocessing or setting; both are named.

    A later delivery of the same S3 Inventory is the same source; the manifest then names that one.
    """
    found = manifest(out)
    if found is None:
        found = {"version": MANIFEST_VERSION, "run_id": run_id, "settings": settings, "calib": calib}
        storage.write_bytes(storage.join(out, "run.json"), json.dumps(found, indent=2).encode())
        return found
    compare(out, found, settings)
    if found["settings"] != settings:  # another delivery, or settings that the run's beginning did not note yet
        found["settings"] = settings
        storage.write_bytes(storage.join(out, "run.json"), json.dumps(found, indent=2).encode())
    return found


def compare(out: str, found: dict[str, Any], settings: dict[str, Any]) -> None:
    """Refuse to go on with the run in ``out``, whose manifest was found, by other settings.

    Raises:
        InputError: a setting is another; both are named.
    """
    there = found["settings"]
    for name in settings:
        if name == "source_kind" and name not in there:
            continue  # of a run that was begun before kinds were noted
        if name == "source" and _inventory(there.get(name, "")) == _inventory(settings[name]):
            continue
        if there.get(name) != settings[name]:
            raise InputError(
                f"{name} {settings[name]}, where the run in {out} has {name} {there.get(name)}",
                "the same model, preprocessing and settings to go on with it",
                "take the file out of the source that makes it another kind, or label into another folder"
                if name == "source_kind"
                else "label into another folder, or pass --overwrite",
            )


def _inventory(source: str) -> str:
    """The source itself, or of a delivery of S3 Inventory what all of that inventory's have in common."""
    return DELIVERY.sub("/manifest.json", source)


def model_id(run: dict[str, Any]) -> str:
    """Of the labels of a run, whose manifest is given: of a cascade both networks' (`cascaded.Cascaded`)."""
    settings = run["settings"]
    cascade = settings.get("cascade")
    if not cascade or cascade["threshold"] is None:
        return str(settings["model_id"])
    return f"{cascade['first_model_id']}+{settings['model_id']}"


def origin(run: dict[str, Any]) -> dict[str, str]:
    """What made the labels, for whoever finds one of their files alone."""
    version = str(run["settings"]["preprocessing_version"])
    return {"model_id": model_id(run), "preprocessing_version": version, "run_id": run["run_id"]}


class Ledger:
    """The finished units of an output, in segments that are written once and never changed.

    A segment holds lines of JSON: first what the run spent on it, then its units. One that starts anew
    (``"base"``) makes those before it void, and they are deleted. Segments are numbered: a run that lost its lease
    without noticing meets the number that it is to write; where that one was deleted, what it writes is void, and it
    finds a higher number before it deletes anything.

    Args:
        check: is called before anything is written or deleted; raises `LeaseLostError` where another run has taken
            over.
    """

    def __init__(self, out: str, check: Callable[[], None] = lambda: None) -> None:
        self.check = check
        self._writer = secrets.token_hex(8)
        self._folder = storage.join(out, "ledger", "segments")
        self.entries: dict[str, Entry] = {}
        """Key of the unit to its entry."""
        self.seconds = 0.0
        """Wall time of labelling, all runs together."""
        self.labelled_images = 0
        """Images answered for in that time."""
        self._numbers: list[int] = []
        self._unfinished: list[str] = []
        self._load()

    def _load(self) -> None:
        if not storage.exists(self._folder):
            return
        files: list[str] = []
        for file in storage.list_files(self._folder):
            # One that begins with a dot is what a run that was killed had not yet published.
            (files if _number(file.path) else self._unfinished).append(file.path)
        with ThreadPoolExecutor(16) as pool:
            for path, text in zip(files, pool.map(storage.read_bytes, files), strict=True):
                head, *lines = (json.loads(line) for line in text.splitlines())
                if head["base"]:
                    self.entries, self.seconds, self.labelled_images = {}, 0.0, 0
                self._numbers.append(_number(path))
                self.seconds += head["seconds"]
                self.labelled_images += head["images"]
                self.entries.update((entry["key"], entry) for entry in lines)

    def commit(self, entries: list[Entry], seconds: float) -> None:
        """Make units count that are published.

        Args:
            seconds: wall time since the last commit.

        Raises:
            LeaseLostError: another run has written meanwhile.
        """
        images = sum(entry["inputs"] - entry["carried"] for entry in entries)
        self._write({"base": False, "seconds": round(seconds, 3), "images": images}, entries)
        self.entries.update((entry["key"], entry) for entry in entries)
        self.seconds += seconds
        self.labelled_images += images

    def keep(self, keys: Iterable[str]) -> None:
        """Forget all units but these, and gather the rest in one segment.

        Raises:
            LeaseLostError: another run has written meanwhile.
        """
        self.check()
        if self._numbers and max(_number(file.path) for file in storage.list_files(self._folder)) != self._numbers[-1]:
            raise LeaseLostError(TAKEN)
        storage.delete_files(self._unfinished)
        self._unfinished.clear()
        kept = {key: self.entries[key] for key in keys}
        if len(kept) == len(self.entries) and len(self._numbers) <= 1:
            return
        old = list(self._numbers)
        self._write({"base": True, "seconds": self.seconds, "images": self.labelled_images}, list(kept.values()))
        self.entries = kept
        storage.delete_files(map(self._segment, old))
        self._numbers = self._numbers[len(old) :]

    def _segment(self, number: int) -> str:
        return storage.join(self._folder, f"{number:012d}.jsonl")

    def _write(self, head: dict[str, Any], entries: list[Entry]) -> None:
        self.check()
        number = max(self._numbers, default=0) + 1
        head = {**head, "writer": self._writer}  # so that no two runs write the same bytes
        text = "\n".join(json.dumps(line, separators=(",", ":")) for line in (head, *entries))
        if not storage.create_bytes(self._segment(number), text.encode()):
            raise LeaseLostError(TAKEN)
        self._numbers.append(number)


def _number(path: str) -> int:
    """Of a segment; 0 of what a run has not yet published, whose name begins with a dot."""
    digits = storage.name(path).partition(".")[0]
    return int(digits) if digits else 0


class Backlog:
    """Which units of a source are still to be done.

    Args:
        entries: of the ledger.
        parts: names of the label parts that are there; a unit whose part is gone is done again.
        retry_errors: units with errors are done again.
    """

    def __init__(self, entries: dict[str, Entry], parts: set[str], retry_errors: bool = False) -> None:
        kept = {key: entry for key, entry in entries.items() if entry["part"] in parts}
        # no more than is asked of them: all of a billion images' units travel to the task that lists
        self._done = {key: (entry["part"], entry["errors"] > 0) for key, entry in kept.items()}
        self._retry = retry_errors
        spans = sorted((*entry["span"], entry["part"]) for entry in kept.values() if entry["span"][1])
        self._spans = spans
        self._first = [span[0] for span in spans]
        self._reach = list(accumulate((span[1] for span in spans), max))

    def match(self, units: Iterable[Unit]) -> Iterator[tuple[Unit, bool]]:
        """Every unit with its part's name, and whether it is to be done."""
        for unit in units:
            part, errors = self._done.get(unit.key, (None, False))
            if part is None:
                yield unit.published_as(unit.key, self._former(unit)), True
            elif self._retry and errors:
                base, _, attempt = part.partition("-")
                yield unit.published_as(f"{base}-{int(attempt or 0) + 1}", [part]), True
            else:
                yield unit.published_as(part), False

    def _former(self, unit: Unit) -> list[str]:
        """Parts of earlier listings whose stretch of ids meets the unit's."""
        first, last = unit.span
        found: list[str] = []
        if last:
            at = bisect.bisect_right(self._first, last) - 1
            while at >= 0 and self._reach[at] >= first and len(found) < MOST_FORMER:
                if self._spans[at][1] >= first:
                    found.append(self._spans[at][2])
                at -= 1
        return found
