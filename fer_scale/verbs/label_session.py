"""One call of ``fer-scale label`` at work on an output: what is left to do, labelled, entered, summed up."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import nullcontext, suppress
from itertools import chain
from typing import Any, Literal, Self

from fer_scale import storage
from fer_scale.cluster import Cluster, connected
from fer_scale.console import Meter, console, progress, say, warn
from fer_scale.labelling import ledger, results
from fer_scale.labelling.ledger import COMMIT_SECONDS, Backlog, Ledger
from fer_scale.labelling.sources import Source
from fer_scale.labelling.units import Unit
from fer_scale.lease import Lease
from fer_scale.predictor import EngineName
from fer_scale.verbs.label_actor import Job, Wish
from fer_scale.verbs.label_stream import ACTOR_CPUS, stream


def engine_of(cluster: Cluster, engine: EngineName) -> Literal["onnx", "torch"]:
    """``auto`` is torch where the cluster has GPUs."""
    if engine != "auto":
        return engine
    return "torch" if cluster.offers_gpus else "onnx"


def crew(cluster: Cluster, engine: str, workers: int | None = None) -> tuple[int, bool]:
    """How many actors there will be, as many as fit where `workers` is not given, and whether each has a GPU.

    Raises:
        InputError: the cluster has too few CPUs or GPUs.
    """
    gpus = int(engine == "torch" and cluster.offers_gpus)
    workers = workers or max(1, cluster.machines.room(ACTOR_CPUS, gpus))
    cluster.require(ACTOR_CPUS, gpus, processes=workers)
    return workers, gpus > 0


def aside(check: Callable[[], None]) -> Future[None]:
    """Check something in a thread that nothing waits for, not even the end of the process."""
    outcome = Future[None]()

    def run() -> None:
        try:
            check()
        except BaseException as error:
            outcome.set_exception(error)
        else:
            outcome.set_result(None)

    threading.Thread(target=run, name="check", daemon=True).start()
    return outcome


class Session:
    """One call at work on an output whose lease it holds.

    Args:
        ids: the check that ids are unique, under way: what is labelled is published once it has ended well.
    """

    def __init__(
        self, out: str, source: Source, run: dict[str, Any], lease: Lease, wish: Wish, ids: Future[None]
    ) -> None:
        self._out = out
        self._source = source
        self._manifest = run
        self._wish = wish
        self._ids = ids
        self._target = int(run["settings"]["unit_images"])
        self._ledger = Ledger(out, lease.check)
        self._new = 0

    def run(self, bundle: str, cluster: Cluster | None) -> dict[str, Any]:
        """Label what is left to do, on `cluster` or, where there is none yet, on one for as long as that takes."""
        backlog = Backlog(self._ledger.entries, results.parts(self._out), self._wish.retry_errors)
        seen: set[str] = set()
        matched = backlog.match(self._source.units(self._target))
        first = next(((unit, to_do) for unit, to_do in _noting(matched, seen) if to_do), None)
        if first is not None:
            seen = set()
            with nullcontext(cluster) if cluster else connected() as cluster:
                self._label(bundle, cluster, backlog, chain([first], matched), seen)
        else:
            say("nothing left to label")
        self._ids.result()
        results.settle(self._out, self._ledger, seen, self._manifest)
        summary = results.publish(self._out, self._ledger, self._manifest, self._new)
        say(
            f"{summary['inputs']:,} images: {summary['labelled']:,} labelled, "
            f"{summary['no_face']:,} without a face, {summary['errors']:,} errors, "
            f"{summary['duplicates']:,} duplicates; {self._new:,} of them now"
        )
        if "answered_by_first" in summary:
            first, second = summary["answered_by_first"], summary["answered_by_second"]
            say(f"{first:,} answered by the first model, {second:,} by the second")
        if "accepted" in summary:
            say(f"{summary['accepted']:,} accepted, {summary['review']:,} for review")
        if summary["drift"] and summary["drift"]["found"]:
            warn(summary["drift"]["remark"])
        if summary["certificate"] is None:
            say(f"how many of them are wrong was not measured: fer-scale certify {self._out}")
        say(f"report: {storage.join(self._out, 'report.html')}")
        return summary

    def _label(
        self,
        bundle: str,
        cluster: Cluster,
        backlog: Backlog,
        listing: Iterator[tuple[Unit, bool]],
        seen: set[str],
    ) -> None:
        settings = self._manifest["settings"]
        workers, gpu = crew(cluster, settings["engine"], self._wish.workers)
        storage.delete(storage.join(self._out, "summary.json"))  # until all is complete again
        begun = []
        for unit, to_do in listing:
            if to_do:
                begun.append(unit)
            if len(begun) == workers:
                break
        job = Job.of(settings, bundle, self._source, self._out, self._wish, len(begun), gpu)
        entries = stream(job, backlog, self._target, seen)
        # a bar that nobody sees needs no total, and to go through a manifest is work
        shown = not console.quiet and self._source.manifest is None
        with progress("labelling") as meter, _Counting(meter, begun, listing) if shown else nullcontext():
            self._take(entries, meter)

    def _take(self, entries: Iterator[ledger.Entry], meter: Meter) -> None:
        """Enter what is published in the ledger, and show it."""
        held: list[ledger.Entry] = []
        errors, since = 0, time.monotonic()
        try:
            for entry in entries:
                held.append(entry)
                errors += entry["errors"]
                self._new += entry["inputs"] - entry["carried"]
                meter.advance(entry["inputs"], note=f"{errors:,} errors")
                if time.monotonic() - since >= COMMIT_SECONDS:
                    self._commit(held, time.monotonic() - since)
                    held, since = [], time.monotonic()
                if self._ids.done():
                    self._ids.result()
        finally:
            self._commit(held, time.monotonic() - since)

    def _commit(self, entries: list[ledger.Entry], seconds: float) -> None:
        if entries:
            self._ledger.commit(entries, seconds)


def _noting(matched: Iterator[tuple[Unit, bool]], seen: set[str]) -> Iterator[tuple[Unit, bool]]:
    for unit, to_do in matched:
        seen.add(unit.key)
        yield unit, to_do


class _Counting:
    """Counts in a thread how many images there are to do, for the bar: listing and labelling do not wait for it."""

    def __init__(self, meter: Meter, begun: list[Unit], listing: Iterator[tuple[Unit, bool]]) -> None:
        self._meter = meter
        self._begun = begun
        self._listing = listing
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._count, name="counting", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=1.0)  # it may be within a long archive, and nobody needs its total any more

    def _count(self) -> None:
        total = sum(unit.size for unit in self._begun)
        # What lists for the actors meets the same error and ends the run with it; here it costs the bar its total.
        with suppress(Exception):
            for unit, to_do in self._listing:
                if self._stop.is_set():
                    return
                total += unit.size if to_do else 0
            self._meter.expect(total)
