"""Counts of one replica, their sum over all replicas, and the text that Prometheus reads."""

import time
from bisect import bisect_left
from collections import defaultdict
from functools import lru_cache
from itertools import accumulate

Key = tuple[str, str]
"""Name of a series and its labels, written as Prometheus writes them: ``route="/",code="200"``."""
Snapshot = dict[Key, float]

SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
IMAGES = (1, 2, 4, 8, 16, 32, 64, 128)

HELP = {
    "fer_scale_requests_total": ("counter", "Requests answered, by route and status code."),
    "fer_scale_request_seconds": (
        "histogram",
        "Seconds from the first byte to the answer of POST /v1/predict.",
    ),
    "fer_scale_images_total": ("counter", "Images labelled, by label."),
    "fer_scale_faces_total": ("counter", "Faces found in photographs and labelled, by label."),
    "fer_scale_no_face_total": ("counter", "Photographs without a face, by reason."),
    "fer_scale_image_errors_total": ("counter", "Images that could not be read, by reason."),
    "fer_scale_batch_images": ("histogram", "Images in a batch that the engine computed."),
    "fer_scale_requests_waiting": ("gauge", "Requests that wait or are computed."),
    "fer_scale_replicas": ("gauge", "Replicas heard of within the last seconds."),
    "fer_scale_model_info": ("gauge", "1 for each model that is being served."),
}

ALIVE_SECONDS = 5.0
GONE_SECONDS = 600.0
"""Without a word, after which a replica's counts are no longer kept apart from those of others that are gone."""


@lru_cache(1024)
def labels(**values: str) -> str:
    """Labels in Prometheus' text form, escaped."""
    escaped = {k: v.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n") for k, v in values.items()}
    return ",".join(f'{key}="{value}"' for key, value in escaped.items())


class Counts:
    """The counts of one replica; touched from its event loop alone."""

    def __init__(self) -> None:
        self._values: defaultdict[Key, float] = defaultdict(float)
        self._histograms: dict[str, tuple[tuple[float, ...], list[int]]] = {}

    def add(self, name: str, by: float = 1, **by_labels: str) -> None:
        """Raise a counter."""
        self._values[name, labels(**by_labels)] += by

    def put(self, name: str, value: float, **by_labels: str) -> None:
        """Set a gauge."""
        self._values[name, labels(**by_labels)] = value

    def observe(self, name: str, value: float, bounds: tuple[float, ...]) -> None:
        """Add a value to a histogram."""
        if name not in self._histograms:
            self._histograms[name] = (bounds, [0] * (len(bounds) + 1))
        self._histograms[name][1][bisect_left(bounds, value)] += 1
        self._values[f"{name}_sum", ""] += value

    def snapshot(self) -> Snapshot:
        """A copy that may leave the process."""
        values = dict(self._values)
        for name, (bounds, found) in self._histograms.items():
            for bound, count in zip((*bounds, "+Inf"), accumulate(found), strict=True):
                values[f"{name}_bucket", f'le="{bound if bound == "+Inf" else f"{bound:g}"}"'] = count
            values[f"{name}_count", ""] = sum(found)
        return values


class Tally:
    """The counts of all replicas, however many: each hands its own in once a second, and who asks gets the sum.

    Counters never fall: those of a replica that is gone stay in the sum. What a replica counted before this tally
    began, for one that was replaced with the application, is left out: a scraper sees counters that begin anew.
    """

    def __init__(self) -> None:
        self._latest: dict[str, tuple[float, Snapshot]] = {}
        """In the order in which replicas were last heard of."""
        self._gone: defaultdict[Key, float] = defaultdict(float)

    async def hand_in(self, replica: str, snapshot: Snapshot, first: bool) -> None:
        """Take one replica's counts in place of its earlier ones.

        Args:
            replica: its name.
            snapshot: its counts since it began.
            first: whether it has never handed in any.
        """
        now = time.monotonic()
        if self._latest.pop(replica, None) is None and not first:
            _add(self._gone, {key: -value for key, value in snapshot.items()}, here=False)
        self._latest[replica] = (now, snapshot)
        while now - (longest := next(iter(self._latest.items())))[1][0] > GONE_SECONDS:
            name, (_, counts) = longest
            _add(self._gone, counts, here=False)
            del self._latest[name]

    async def total(self) -> Snapshot:
        """The sum over all, gauges of the living only."""
        now = time.monotonic()
        total = self._gone.copy()
        living = [now - heard <= ALIVE_SECONDS for heard, _ in self._latest.values()]
        for (_, counts), here in zip(self._latest.values(), living, strict=True):
            _add(total, counts, here)
        total["fer_scale_replicas", ""] = sum(living)
        return dict(total)


def _add(total: defaultdict[Key, float], counts: Snapshot, here: bool) -> None:
    """Add a replica's counts, without its gauges where it is not here any more."""
    for (name, by), value in counts.items():
        if name == "fer_scale_model_info":
            total[name, by] = max(total[name, by], float(here))
        elif here or HELP.get(name, ("counter", ""))[0] != "gauge":
            total[name, by] += value


def render(values: Snapshot) -> str:
    """Prometheus' text format 0.0.4."""
    lines = []
    for name, (kind, help_text) in HELP.items():
        series = (name,) if kind != "histogram" else (f"{name}_bucket", f"{name}_sum", f"{name}_count")
        rows = [
            (one, by, value) for one in series for (key, by), value in sorted(values.items(), key=_order) if key == one
        ]
        if rows:
            lines += [f"# HELP {name} {help_text}", f"# TYPE {name} {kind}"]
            lines += [f"{one}{{{by}}} {value:.10g}" if by else f"{one} {value:.10g}" for one, by, value in rows]
    return "\n".join(lines) + "\n"


def _order(item: tuple[Key, float]) -> tuple[str, float, str]:
    (name, by), _ = item
    bound = by.removeprefix('le="').rstrip('"')
    return name, float(bound) if name.endswith("_bucket") else 0.0, by
