"""What a labelling run would take, from a sample of its work units."""

import heapq
import math
import random
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from fer_scale.labelling.lease import BEAT_SECONDS
from fer_scale.labelling.ledger import COMMIT_SECONDS, Entry
from fer_scale.labelling.tables import open_parquet
from fer_scale.labelling.units import Unit
from fer_scale.storage import is_s3

SAMPLE_UNITS = 12
"""A worker: enough of them that one slow corner of a bucket does not decide."""
COUNTS = ("errors", "no_face", "faces")
SAMPLE_SECONDS = 30.0
"""After so long a worker begins no other unit of the sample."""


OPENING = 3
"""Requests to S3 that open a Parquet file: its size, and a footer in one read or two."""
PIECE = 2**20
"""Bytes that are read ahead (`tables.open_parquet`); a column's page that is larger takes two reads."""
PAGE_ROWS = 1024
"""Rows after which a writer looks whether a page has reached a MiB: pyarrow's default."""


def table_requests(unit: Unit, columns: Collection[str]) -> int:
    """Requests to S3 for a unit of Parquet, about: pyarrow makes them, and the client that counts others sees none."""
    if unit.kind != "parquet" or not is_s3(unit.path):
        return 0
    with open_parquet(unit.path) as table:
        groups = [table.metadata.row_group(at) for at in range(table.metadata.num_row_groups)]
    requests, begin = OPENING, 0
    for group in groups:
        stop = begin + group.num_rows
        if begin < unit.stop and unit.start < stop:
            share = (min(stop, unit.stop) - begin) / group.num_rows  # a row group is read from its first row on
            chunks = [group.column(at) for at in range(group.num_columns)]
            sizes = [c.total_compressed_size for c in chunks if c.path_in_schema.partition(".")[0] in columns]
            requests += sum(_reads(size, share, group.num_rows) for size in sizes)
        begin = stop
    return requests


def _reads(size: int, share: float, rows: int) -> int:
    """Of a column in a row group, from its beginning on: one where it is small, else a dictionary's and the pages'."""
    return 1 if size <= PIECE else 1 + 2 * math.ceil(share * size / max(PIECE, PAGE_ROWS * size / rows))


@dataclass
class Listed:
    """What a source holds, and a random sample of the units that are left to do."""

    images: int = 0
    sizes: list[int] = field(default_factory=list)
    """Images of each unit that is to be done."""
    sample: list[Unit] = field(default_factory=list)
    """In random order, for it may be cut short."""
    tables: int = 0
    """Parquet files in S3, each of which a listing opens."""


def listed(matched: Iterable[tuple[Unit, bool]], size: int, seed: int) -> Listed:
    """Go through a listing; ``size`` units are kept (reservoir sampling, Vitter's algorithm R)."""
    draw = random.Random(seed)
    found = Listed()
    table = ""
    for unit, to_do in matched:
        found.images += unit.size
        if unit.kind == "parquet" and unit.path != table and is_s3(unit.path):
            table = unit.path
            found.tables += 1
        if not to_do:
            continue
        found.sizes.append(unit.size)
        if len(found.sample) < size:
            found.sample.append(unit)
        elif (at := draw.randrange(len(found.sizes))) < size:
            found.sample[at] = unit
    draw.shuffle(found.sample)
    return found


@dataclass(frozen=True)
class Sampled:
    """How one unit went."""

    actor: str
    began: float
    ended: float
    """Seconds, by the actor's clock."""
    entry: Entry
    peak_mib: float
    """The actor's largest resident memory until then."""
    requests: int
    """To S3, of the actor so far."""
    files: int
    bytes: int
    """What it would have published."""


def rates(sample: Iterable[Sampled]) -> list[float]:
    """Images a second of each actor, from its first unit's begin to its last one's end."""
    by_actor: dict[str, list[Sampled]] = defaultdict(list)
    for one in sample:
        by_actor[one.actor].append(one)
    return [
        sum(one.entry["inputs"] for one in units)
        / max(max(one.ended for one in units) - min(one.began for one in units), 1e-6)
        for units in by_actor.values()
    ]


def makespan(sizes: Iterable[int], rate: float, workers: int) -> float:
    """Seconds until all units are done when each worker takes the next one as it gets free."""
    free = [0.0] * workers
    for size in sizes:
        heapq.heapreplace(free, free[0] + size / rate)
    return max(free)


def estimate(
    found: Listed, sample: list[Sampled], workers: int, overhead: float, driver_mib: float, listing_requests: int
) -> dict[str, Any]:
    """The quote.

    Args:
        overhead: seconds that go by before the first unit is begun and after the last has ended.
        driver_mib: resident memory of the process that asks.
        listing_requests: to S3, for one listing of the source.
    """
    images = sum(found.sizes)
    done = sum(one.entry["inputs"] for one in sample)
    each = rates(sample)
    seconds = overhead + makespan(found.sizes, sum(each) / len(each), workers)
    worker_mib = max(one.peak_mib for one in sample)
    gets = sum(max(one.requests for one in sample if one.actor == actor) for actor in {one.actor for one in sample})
    files = sum(one.files for one in sample) * len(found.sizes) / len(sample)
    return {
        "images": found.images,
        "to_label": images,
        "sampled": done,
        **{name: round(images * sum(one.entry[name] for one in sample) / done) for name in COUNTS},
        "seconds": round(seconds, 1),
        "hours": round(seconds / 3600, 4),
        "images_per_second": round(images / seconds, 2),
        "workers": workers,
        "memory_mib": round(workers * worker_mib + 2 * driver_mib),  # the process that lists is as large as the driver
        "memory_mib_per_worker": round(worker_mib),
        # The driver and the task that hands out units each list once.
        "requests_get": round(images * gets / done) + 2 * OPENING * found.tables,
        "requests_put": round(files + seconds / COMMIT_SECONDS + 2 * seconds / BEAT_SECONDS),
        "requests_list": 2 * listing_requests,
        "output_mib": round(images * sum(one.bytes for one in sample) / done / 2**20, 1),
    }


def nothing(images: int) -> dict[str, Any]:
    """The quote where all is labelled."""
    names = ("to_label", "sampled", *COUNTS, "seconds", "hours", "images_per_second", "workers", "memory_mib",
             "memory_mib_per_worker", "requests_get", "requests_put", "requests_list", "output_mib")  # fmt: skip
    return {"images": images, **dict.fromkeys(names, 0)}


def lines(quote: dict[str, Any], price: float | None) -> Iterator[str]:
    """For a person."""
    yield (
        f"{quote['images']:,} images, {quote['to_label']:,} of them to be labelled; "
        f"{quote['sampled']:,} were, and nothing was written"
    )
    if not quote["to_label"]:
        return
    hours, minutes = divmod(round(quote["seconds"] / 60), 60)
    length = f"{hours} h {minutes} min" if hours else f"{minutes} min" if minutes else f"{quote['seconds']:.0f} s"
    yield (
        f"about {length} of labelling: {quote['images_per_second']:,.0f} images a second by {quote['workers']} workers"
        f" with {quote['memory_mib_per_worker']:,} MiB each; {quote['output_mib']:,} MiB of output"
    )
    if quote["requests"]:
        kinds = ", ".join(f"{quote[f'requests_{kind}']:,} {kind}" for kind in ("get", "put", "list"))
        yield f"about {quote['requests']:,} requests to S3 ({kinds})"
    if price is not None:
        yield f"about {price:,.2f} for the cluster"
