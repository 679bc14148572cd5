"""``fer-scale label``: one answer for every image of a source, exactly once, however often it is stopped."""

import os
import secrets
from contextlib import nullcontext, suppress
from dataclasses import asdict
from typing import Any, Literal

from fer_scale import storage
from fer_scale.arguments import check_seed
from fer_scale.bundle import Bundle
from fer_scale.cluster import connected
from fer_scale.console import set_quiet
from fer_scale.errors import InputError
from fer_scale.faces import mtcnn
from fer_scale.faces.detection import Detection
from fer_scale.faces.images import PREPROCESSING_VERSION
from fer_scale.labelling import ledger
from fer_scale.labelling.sources import Source
from fer_scale.learning.acceptance import Known, promise
from fer_scale.learning.cascade import cascade
from fer_scale.learning.drift import on_calib
from fer_scale.lease import Lease
from fer_scale.predictor import EngineName
from fer_scale.verbs.label_actor import Wish
from fer_scale.verbs.label_quote import quote
from fer_scale.verbs.label_session import Session, aside, crew, engine_of

PathLike = str | os.PathLike[str]
OURS = (
    "run.json",
    "summary.json",
    "report.html",
    "ledger",
    "labels",
    "errors",
    "no_face",
    "certificate",
    "certificate.json",
)
TOLERANCE = 0.005
"""Accuracy that a first model may cost where nothing else is asked."""
IDS_AHEAD = 5.0
"""Seconds that work waits for the check that ids are unique: half a million ids. Of more it ends beside the work."""
FacesName = Literal["crop", "detect"]


def label(
    bundle: PathLike,
    source: PathLike,
    out: PathLike,
    *,
    image_column: str = "image",
    id_column: str | None = None,
    uri_column: str | None = None,
    include: str | None = None,
    faces: FacesName = "crop",
    workers: int | None = None,
    engine: EngineName = "auto",
    requests_per_second: float | None = None,
    max_error: float | None = None,
    first: PathLike | None = None,
    tolerance: float | None = None,
    retry_errors: bool = False,
    dry_run: bool = False,
    price_per_hour: float | None = None,
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
        faces: crop takes each image as it is; detect finds the faces in it and labels each (`faces.detection`).
        workers: actors, each with one thread or one GPU; without it as many as the cluster has.
        engine: auto, onnx or torch; a run keeps the one it began with.
        requests_per_second: the most requests to S3 that all workers together make in a second.
        max_error: the largest share of errors among accepted labels, as 0.05: adds the column ``accepted``, by a
            threshold that the bundle's calib rows prove with 95 % confidence (`learning.acceptance`).
        first: the bundle of a smaller model: ``bundle`` is only asked where that one is not sure.
        tolerance: the accuracy that ``first`` may cost, with 95 % confidence, proven on calib (`learning.cascade`);
            without it 0.005.
        retry_errors: try the images again that ended as errors.
        dry_run: label a sample of what is left to do, write nothing, and say what the whole would take.
        price_per_hour: of the whole cluster, in any currency: a dry run says what the run would cost.
        overwrite: forget what an earlier run left in ``out``.
        seed: of the sample of a dry run; nothing else is drawn.
        quiet: say nothing on stderr.

    Returns:
        What summary.json holds: inputs = labelled + no_face + errors, faces, duplicates, new (answered by
        this call), images_per_second and seconds (of all calls that worked on `out`), model_id, run_id; with ``first``
        answered_by_first and answered_by_second. Of a dry run: images, to_label, sampled, seconds and hours of
        labelling, images_per_second, workers, memory_mib (of all processes) and memory_mib_per_worker, requests to S3
        (and of these get, put, list), output_mib; and price.

    Raises:
        InputError: source, bundle or out cannot be used, another run is at work on ``out`` or began it with another
            model or setting, the cluster is too small, ``first`` does not fit, or the bundle's calib rows are too few.
    """
    set_quiet(quiet)
    if price_per_hour is not None and not (dry_run and price_per_hour >= 0):
        raise InputError(f"price_per_hour={price_per_hour:g}", "0 or more, with --dry-run", "add --dry-run")
    source, out, bundle = (storage.normal(path) for path in (source, out, bundle))
    model = Bundle.load(bundle)
    _check_paths(bundle, source, out, overwrite)
    check_seed(seed)
    if workers is not None and workers < 1:
        raise InputError(f"workers={workers}", "1 or more", "leave --workers out to use the whole cluster")
    if requests_per_second is not None and not requests_per_second > 0:
        raise InputError(f"requests_per_second={requests_per_second:g}", "more than 0", "leave it out for no limit")
    if tolerance is not None and first is None:
        raise InputError(f"tolerance={tolerance:g} without first", "the model that it is about", "add --first BUNDLE")
    if engine not in ("auto", "onnx", "torch"):
        raise InputError(f"engine {engine!r}", "auto, onnx or torch", "name one of them")
    if faces not in ("crop", "detect"):
        raise InputError(f"faces {faces!r}", "crop or detect", "name one of them")
    found = Source.open(source, image_column=image_column, id_column=id_column, include=include, uri_column=uri_column)
    ids = aside(found.check_ids)
    with suppress(TimeoutError):
        ids.result(timeout=None if dry_run else IDS_AHEAD)
    run = None if overwrite else ledger.manifest(out)
    settings = _settings(model, found, engine, run)
    settings["faces"] = asdict(Detection(weights=mtcnn.release())) if faces == "detect" else None
    known: Known = model
    if first is not None:
        first, tolerance = storage.normal(first), TOLERANCE if tolerance is None else tolerance
        proven, known = cascade(Bundle.load(first), model, tolerance, max_error is not None)
        settings.update(first=proven.first_model_id, tolerance=tolerance, cascade=asdict(proven))
    else:
        settings.update(first=None, tolerance=None, cascade=None)
    settings["max_error"] = max_error  # before what follows from it: a refusal names the first that differs
    settings["acceptance"] = None if max_error is None else asdict(promise(known, max_error))
    wish = Wish(workers, requests_per_second, retry_errors, first)
    if dry_run:
        if run is not None:
            ledger.compare(out, run, settings)
        return quote(bundle, found, out, settings, wish, anew=overwrite, price_per_hour=price_per_hour, seed=seed)
    # A new run needs the cluster in any case, so it asks before it writes or deletes anything. One that is gone on
    # with may have nothing left to do, and then Ray is not even started.
    with connected() if run is None else nullcontext() as cluster:
        if cluster is not None:
            settings["engine"] = engine_of(cluster, settings["engine"])
            crew(cluster, settings["engine"], workers)
        run_id = run["run_id"] if run else secrets.token_hex(6)
        with Lease(out, run_id) as lease:
            if overwrite:
                for name in OURS:
                    storage.delete(storage.join(out, name))
            begun = ledger.fix(out, settings, run_id, on_calib(known))
            session = Session(out, found, begun, lease, wish, ids)
            return session.run(bundle, cluster)


def _check_paths(bundle: str, source: str, out: str, overwrite: bool) -> None:
    storage.check_output(out, overwrite, resume=not overwrite, inputs=[bundle, source])
    real, within = (path if storage.is_s3(path) else os.path.realpath(path) for path in (source, out))
    if within.startswith(f"{real.rstrip('/')}/") and storage.is_dir(source):
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
        "source_kind": "manifest" if source.manifest else "tables" if source.containers else "files",
        "image_column": source.image_column,
        "id_column": source.id_column,
        "uri_column": source.manifest.uri_column if source.manifest else None,
        "include": source.include,
        "unit_images": there.get("unit_images") or source.unit_images(),
    }
