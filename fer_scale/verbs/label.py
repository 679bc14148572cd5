"""``fer-scale label``: one answer for every image of a source, exactly once, however often it is stopped."""

import os
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any, Literal

from fer_scale import storage
from fer_scale.bundle import Bundle
from fer_scale.cluster import TOLERANCE, Cluster, connected
from fer_scale.console import Meter, progress, say, set_quiet
from fer_scale.errors import InputError
from fer_scale.faces.images import PREPROCESSING_VERSION
from fer_scale.labelling import ledger, results
from fer_scale.labelling.lease import Lease
from fer_scale.labelling.ledger import Ledger, Plan
from fer_scale.labelling.sources import Source
from fer_scale.labelling.units import Unit
from fer_scale.learning.acceptance import Acceptance, promise
from fer_scale.predictor import EngineName
from fer_scale.verbs.label_stream import ACTOR_CPUS, LISTING_CPUS, Job, stream

PathLike = str | os.PathLike[str]
COMMIT_SECONDS = 2.0
"""Published units are entered in the ledger at least this often while they come."""
OURS = ("run.json", "summary.json", "report.html", "ledger", "labels", "errors", "certificate", "certificate.json")


def label(
    bundle: PathLike,
    source: PathLike,
    out: PathLike,
    *,
    image_column: str = "image",
    id_column: str | None = None,
    uri_column: str | None = None,
    include: str | None = None,
    workers: int | None = None,
    engine: EngineName = "auto",
    requests_per_second: float | None = None,
    max_error: float | None = None,
    retry_errors: bool = False,
    overwrite: bool = False,
    seed: int = 0,
    quiet: bool = False,
) -> dict[str, Any]:
    """Label every image of a source into OUT/labels, and what cannot be read into OUT/errors, as Parquet.

    The same call on the same `out` goes on where one was stopped, labels what is new or has changed in the
    source, drops what is gone, or finds nothing left to do.

    Args:
        bundle: a model bundle, local or s3://.
        source: a folder of images, a zip or tar archive, a Parquet or CSV file, a folder of those, a face store, or a
            manifest of URIs.
        out: the folder that is written, local or s3://.
        image_column: the pictures in a table: encoded bytes, pixel text or paths.
        id_column: the ids in a table; without it an id is the file's path and the row, ``faces.parquet#7``.
        uri_column: the tables are manifests, and this column names the images by path or s3://; the URI is the id.
        include: a pattern such as ``*.jpg`` for the files of a folder or the members of archives; one for archives
            (``*.zip``) or tables chooses among these; without it every file is an input.
        workers: actors, each with one thread or one GPU; without it as many as the cluster has.
        engine: auto, onnx or torch; a run keeps the one it began with.
        requests_per_second: the most requests to S3 that all workers together make in a second.
        max_error: the largest share of errors among accepted labels, as 0.05: adds the column ``accepted``, by a
            threshold that the bundle's calib rows prove with 95 % confidence (`learning.acceptance`).
        retry_errors: try the images again that ended as errors.
        overwrite: forget what an earlier run left in ``out``.
        seed: taken like everywhere; nothing is drawn here.
        quiet: say nothing on stderr.

    Returns:
        What summary.json holds: inputs = labelled + no_face + errors, faces, duplicates, new (answered by
        this call), images_per_second and seconds (of all calls that worked on `out`), model_id, run_id.

    Raises:
        InputError: source, bundle or out cannot be used, another run is at work on ``out`` or began it with another
            model or setting, the cluster is too small, or the bundle's calib rows are too few for ``max_error``.
    """
    set_quiet(quiet)
    source, out, bundle = (storage.normal(path) for path in (source, out, bundle))
    model = Bundle.load(bundle)
    _check_paths(bundle, source, out, overwrite)
    if workers is not None and workers < 1:
        raise InputError(f"workers={workers}", "1 or more", "leave --workers out to use the whole cluster")
    if requests_per_second is not None and not requests_per_second > 0:
        raise InputError(f"requests_per_second={requests_per_second:g}", "more than 0", "leave it out for no limit")
    if engine not in ("auto", "onnx", "torch"):
        raise InputError(f"engine {engine!r}", "auto, onnx or torch", "name one of them")
    found = Source.open(source, image_column=image_column, id_column=id_column, include=include, uri_column=uri_column)
    found.check_ids()
    run = None if overwrite else ledger.manifest(out)
    settings = _settings(model, found, engine, run)
    settings["max_error"] = max_error  # before what follows from it: a refusal names the first that differs
    settings["acceptance"] = None if max_error is None else asdict(promise(model, max_error))
    # A new run needs the cluster in any case, so it asks before it writes or deletes anything. One that is gone on
    # with may have nothing left to do, and then Ray is not even started.
    with connected() if run is None else nullcontext() as cluster:
        if cluster is not None:
            settings["engine"] = _engine_of(cluster, settings["engine"])
            crew(cluster, settings["engine"], workers)
        run_id = run["run_id"] if run else secrets.token_hex(6)
        with Lease(out, run_id) as lease:
            if overwrite:
                for name in OURS:
                    storage.delete(storage.join(out, name))
            begun = ledger.fix(out, settings, run_id)
            session = _Session(out, found, begun, lease, _Wish(workers, requests_per_second, retry_errors))
            return session.run(bundle, cluster)


def _check_paths(bundle: str, source: str, out: str, overwrite: bool) -> None:
    storage.check_output(out, overwrite, resume=not overwrite, inputs=[bundle, source])
    if out.startswith(f"{source.rstrip('/')}/") and storage.is_dir(source):
        raise InputError(f"the output {out} lies within the source", "an output outside of it", "choose another OUT")
    if overwrite or ledger.manifest(out) is not None or not storage.exists(out):
        return
    skip = len(out.rstrip("/")) + 1
    others = (file.path[skip:] for file in storage.list_files(out))
    if any(not name.startswith((".", "lease.json")) for name in others):
        storage.check_output(out, overwrite)


def _settings(model: Bundle, source: Source, engine: EngineName, run: dict[str, Any] | None) -> dict[str, Any]:
    """What decides the answers. What is chosen by looking (engine, unit size) is kept as the run began with it."""
    there = run["settings"] if run else {}
    if engine == "auto":
        engine = there.get("engine", "auto")
    return {
        "model_id": model.model_id,
        "classes": model.classes,
        "preprocessing": asdict(model.preprocessing),
        "preprocessing_version": PREPROCESSING_VERSION,
        "engine": engine,
        "source": source.path,
        "image_column": source.image_column,
        "id_column": source.id_column,
        "uri_column": source.manifest.uri_column if source.manifest else None,
        "include": source.include,
        "unit_images": there.get("unit_images") or source.unit_images(),
    }


def _engine_of(cluster: Cluster, engine: EngineName) -> Literal["onnx", "torch"]:
    """``auto`` is torch where the cluster has a GPU."""
    if engine != "auto":
        return engine
    return "torch" if cluster.gpus >= 1 else "onnx"


def crew(cluster: Cluster, engine: str, workers: int | None = None) -> tuple[int, bool]:
    """How many actors there will be, as many as fit where `workers` is not given, and whether each has a GPU.

    Raises:
        InputError: the cluster has too few CPUs or GPUs.
    """
    if engine == "torch" and cluster.gpus >= 1:
        # An actor with a GPU takes its share of a CPU as well, and the listing has to find room beside them.
        room = (cluster.cpus - LISTING_CPUS + TOLERANCE) / ACTOR_CPUS
        workers = workers or max(1, int(min(cluster.gpus, room)))
        cluster.require(cpus=workers * ACTOR_CPUS + LISTING_CPUS, gpus=workers)
        return workers, True
    workers = workers or max(1, int(cluster.cpus))
    cluster.require(cpus=workers)
    return workers, False


@dataclass(frozen=True)
class _Wish:
    """What may be another the next time: it changes no answer."""

    workers: int | None
    requests_per_second: float | None
    retry_errors: bool


class _Session:
    """One call at work on an output whose lease it holds."""

    def __init__(self, out: str, source: Source, run: dict[str, Any], lease: Lease, wish: _Wish) -> None:
        self._out = out
        self._source = source
        self._manifest = run
        self._lease = lease
        self._wish = wish
        self._target = int(run["settings"]["unit_images"])
        self._ledger = Ledger(out)
        self._new = 0

    def run(self, bundle: str, cluster: Cluster | None) -> dict[str, Any]:
        """Label what is left to do, on `cluster` or, where there is none yet, on one for as long as that takes."""
        plan = Plan(self._ledger.entries, results.parts(self._out, "labels"), self._wish.retry_errors)
        seen: set[str] = set()
        matched = plan.match(self._source.units(self._target))
        first = next(((unit, to_do) for unit, to_do in _noting(matched, seen) if to_do), None)
        if first is not None:
            seen = set()
            with nullcontext(cluster) if cluster else connected() as cluster:
                self._label(bundle, cluster, plan, chain([first], matched), seen)
        else:
            say("nothing left to label")
        self._lease.check()
        results.settle(self._out, self._ledger, seen)
        summary = results.publish(self._out, self._ledger, self._manifest, self._new)
        say(
            f"{summary['inputs']:,} images: {summary['labelled']:,} labelled, "
            f"{summary['no_face']:,} without a face, {summary['errors']:,} errors, "
            f"{summary['duplicates']:,} duplicates; {self._new:,} of them now"
        )
        if "accepted" in summary:
            say(f"{summary['accepted']:,} accepted, {summary['review']:,} for review")
        if summary["certificate"] is None:
            say(f"how many of them are wrong was not measured: fer-scale certify {self._out}")
        say(f"report: {storage.join(self._out, 'report.html')}")
        return summary

    def _label(
        self,
        bundle: str,
        cluster: Cluster,
        plan: Plan,
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
        promised = settings.get("acceptance")
        acceptance = Acceptance(**promised) if promised else None
        job = Job(
            bundle=bundle,
            model_id=settings["model_id"],
            source=self._source,
            out=self._out,
            engine=settings["engine"],
            gpu=gpu,
            retry_errors=self._wish.retry_errors,
            acceptance=acceptance,
            workers=len(begun),
            requests_per_second=self._wish.requests_per_second,
        )
        entries = stream(job, plan, self._target, seen)
        with progress("labelling") as meter, _Counting(meter, begun, listing):
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
        finally:
            self._commit(held, time.monotonic() - since)

    def _commit(self, entries: list[ledger.Entry], seconds: float) -> None:
        if entries:
            self._lease.check()
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

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _count(self) -> None:
        total = sum(unit.size for unit in self._begun)
        for unit, to_do in self._listing:
            if self._stop.is_set():
                return
            total += unit.size if to_do else 0
        self._meter.expect(total)
