"""What a labelling run would take, from a sample of its work units."""

import heapq
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from fer_scale.durations import duration
from fer_scale.labelling.ledger import COMMIT_SECONDS, Entry
from fer_scale.labelling.units import Unit
from fer_scale.lease import BEAT_SECONDS

SAMPLE_UNITS = 12
"""A worker: enough of them that one slow corner of a bucket does not decide."""
COUNTS = ("errors", "no_face", "faces")
SAMPLE_SECONDS = 30.0
"""After so long a worker begins no other unit of the sample."""


@dataclass
class Listed:
    """What a source holds, and a random sample of the units that are left to do."""

    images: int = 0
    sizes: list[int] = field(default_factory=list)
    """Images of each unit that is to be done."""
    sample: list[Unit] = field(default_factory=list)
    """In random order, for it may be cut short."""


def listed(matched: Iterable[tuple[Unit, bool]], size: int, seed: int) -> Listed:
    """Go through a listing; ``size`` units are kept (reservoir sampling, Vitter's algorithm R)."""
    draw = random.Random(seed)
    found = Listed()
    for unit, to_do in matched:
        found.images += unit.size
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
        "requests_get": round(images * gets / done),
        "requests_put": round(files + seconds / COMMIT_SECONDS + 2 * seconds / BEAT_SECONDS),
        "requests_list": 2 * listing_requests,  # the driver and the task that hands out units each list once
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
    yield (
        f"about {duration(quote['seconds'])} of labelling: {quote['images_per_second']:,.0f} images a second by "
        f"{quote['workers']} workers with {quote['memory_mib_per_worker']:,} MiB each; {quote['output_mib']:,} MiB of "
        "output"
    )
    if quote["requests"]:
        kinds = ", ".join(f"{quote[f'requests_{kind}']:,} {kind}" for kind in ("get", "put", "list"))
        yield f"about {quote['requests']:,} requests to S3 ({kinds})"
    if price is not None:
        yield f"about {price:,.2f} for the cluster"
