"""``fer-scale label --dry-run``: a sample of the real units, by the real actors, and nothing written."""

import os
import resource
import sys
import threading
import time
from typing import Any

from fer_scale import storage
from fer_scale.cluster import Cluster, connected
from fer_scale.console import progress, say
from fer_scale.labelling import results
from fer_scale.labelling.ledger import Backlog, Ledger
from fer_scale.labelling.quote import SAMPLE_SECONDS, SAMPLE_UNITS, Listed, Sampled, estimate, lines, listed, nothing
from fer_scale.labelling.sources import Source
from fer_scale.labelling.units import Unit
from fer_scale.labelling.worker import Worker
from fer_scale.verbs.label_actor import Job, Labeller, Wish, predictor_of, worker_of
from fer_scale.verbs.label_session import crew, engine_of
from fer_scale.verbs.label_stream import messages, row


def quote(
    bundle: str,
    source: Source,
    out: str,
    settings: dict[str, Any],
    wish: Wish,
    *,
    anew: bool,
    price_per_hour: float | None,
    seed: int,
) -> dict[str, Any]:
    """What `label` with the same arguments would take.

    Args:
        settings: of the run that would be; the engine may still be ``auto``.
        anew: an earlier run in ``out`` would be forgotten.

    Returns:
        See `fer_scale.verbs.label.label`.
    """
    with connected() as cluster:
        settings = {**settings, "engine": engine_of(cluster, settings["engine"])}
        workers, gpu = crew(cluster, settings["engine"], wish.workers)
        backlog = Backlog({}, set()) if anew else _backlog(out, wish)
        before = storage.requests_made()
        found = listed(backlog.match(source.units(settings["unit_images"])), SAMPLE_UNITS * workers, seed)
        listing = storage.requests_made() - before
        if found.sizes:
            job = Job.of(settings, bundle, source, out, wish, min(workers, len(found.sizes)), gpu)
            values = _measured(job, found, listing, cluster)
        else:
            values = nothing(found.images)
    if not storage.is_s3(out):
        values["requests_put"] = 0
    values["requests"] = sum(values[f"requests_{kind}"] for kind in ("get", "put", "list"))
    price = None if price_per_hour is None else values["hours"] * price_per_hour
    for line in lines(values, price):
        say(line)
    return {"dry_run": True, **values, **({} if price is None else {"price": round(price, 4)})}


def _backlog(out: str, wish: Wish) -> Backlog:
    return Backlog(Ledger(out).entries, results.parts(out), wish.retry_errors)


def _measured(job: Job, found: Listed, listing: int, cluster: Cluster) -> dict[str, Any]:
    units = [unit.to_bytes() for unit in found.sample]
    sample: list[Sampled] = []
    before = last = float("inf")
    began = time.monotonic()
    with progress("sampling", sum(unit.size for unit in found.sample)) as meter:
        for message in messages(job, lambda: (row(unit=unit) for unit in units), Sampler):
            if "sampled" in message:
                one = Sampled(**message["sampled"])
                sample.append(one)
                last = time.monotonic()
                before = min(before, last - began - (one.ended - one.began))
                meter.advance(one.entry["inputs"])
    overhead = before + time.monotonic() - last
    return estimate(found, sample, job.workers, overhead, _peak_mib(), listing)


class Discard:
    """Takes what would be published, and counts it."""

    def __init__(self) -> None:
        self.files = self.bytes = 0

    def __call__(self, path: str, data: bytes) -> None:
        self.files += 1
        self.bytes += len(data)


class Sampler(Labeller):
    """An actor of a dry run: measures, and stops when it has seen enough."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self._discard = Discard()
        self._counting = threading.Lock()
        self._first: float | None = None
        self._requests = 0

    def load(self) -> Worker:
        """A worker that publishes nothing."""
        worker = worker_of(self.job, predictor_of(self.job), self._reader, self._discard)
        self._requests = storage.requests_made()
        return worker

    def told(self, worker: Worker, unit: Unit) -> dict[str, Any]:
        """Label the unit for its measures' sake."""
        began = time.monotonic()
        with self._counting:
            self._first = self._first or began
        if began - self._first > SAMPLE_SECONDS:
            return {}
        entry = worker.label(unit, self.job.retry_errors)
        with self._counting:
            files, size = self._discard.files, self._discard.bytes
            self._discard.files = self._discard.bytes = 0
            requests = storage.requests_made() - self._requests
        return {
            "sampled": {
                "actor": f"{os.uname().nodename}-{os.getpid()}", "began": began, "ended": time.monotonic(),
                "entry": entry, "peak_mib": _peak_mib(), "requests": requests, "files": files, "bytes": size,
            }
        }  # fmt: skip


def _peak_mib() -> float:
    """The largest resident memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
