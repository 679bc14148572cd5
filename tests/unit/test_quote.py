"""What a run would take, reckoned from a sample."""

import io
import logging

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fer_scale import storage
from fer_scale.labelling.quote import Listed, Sampled, estimate, listed, makespan, rates, table_requests
from fer_scale.labelling.reading import Reader
from fer_scale.labelling.sources import Source
from fer_scale.labelling.units import Item, Unit


def unit(number: int, size: int = 10) -> Unit:
    return Unit("files", "r/", "", "", 0, size, tuple(Item(f"{number}-{n}", "", 1) for n in range(size)))


def one(actor: str, began: float, ended: float, images: int = 100, requests: int = 0) -> Sampled:
    return Sampled(
        actor, began, ended, {"inputs": images, "errors": 1, "no_face": 2, "faces": images}, 200.0, requests, 2, 4096
    )


def test_the_sample_is_random_and_finished_units_are_left_out() -> None:
    units = [(unit(n, 5 + n % 3), n % 2 == 0) for n in range(400)]
    found = listed(units, 40, seed=1)
    assert found.images == sum(each.size for each, _ in units)
    assert found.sizes == [each.size for each, to_do in units if to_do]
    drawn = [int(each.items[0].id.partition("-")[0]) for each in found.sample]
    assert len(set(drawn)) == 40
    assert all(n % 2 == 0 for n in drawn)
    assert 120 < sum(drawn) / 40 < 280, "from everywhere"
    assert drawn != sorted(drawn)
    assert [each.key for each in listed(units, 40, seed=1).sample] == [each.key for each in found.sample]


@pytest.mark.parametrize(("group", "ids"), [(1024, None), (1024, "id"), (128, None), (8192, None)])
def test_requests_for_parquet_are_about_those_that_s3_gets(s3: str, group: int, ids: str | None) -> None:
    noise = np.random.default_rng(0)
    table = pa.table({"image": [noise.bytes(2500) for _ in range(8192)], "id": [str(n) for n in range(8192)]})
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=group)
    storage.write_bytes(f"{s3}/faces/a.parquet", sink.getvalue())
    source = Source.open(f"{s3}/faces", id_column=ids)
    units = list(source.units(1024))
    told = sum(table_requests(unit, ("image", ids or "")) for unit in units)
    log = logging.getLogger("werkzeug")
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    before = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        for unit in units:
            for _ in Reader("image", ids).read(unit):
                pass
    finally:
        log.removeHandler(handler)
        log.setLevel(before)
    made = sum("a.parquet" in line for line in lines)
    assert made >= 5 * len(units)
    assert 0.75 * made <= told <= 1.25 * made
    local = Unit("parquet", "/faces/a.parquet", "a.parquet", "v", 0, 10)
    assert table_requests(local, ("image",)) == 0
    assert listed([(unit, True) for unit in units], 4, 0).tables == 1


def test_rates_are_of_an_actor_from_its_first_unit_to_its_last() -> None:
    assert rates([one("a", 5, 6), one("a", 5.5, 7), one("b", 1, 3)]) == [100.0, 50.0]


def test_the_slowest_worker_decides() -> None:
    assert makespan([10, 10, 10], 1.0, 2) == 20
    assert makespan([10] * 1000, 2.0, 4) == 1250


def test_an_estimate_scales_the_sample() -> None:
    found = Listed(images=5000, sizes=[100] * 40, sample=[])
    told = estimate(found, [one("a", 0, 1, requests=200), one("b", 0, 1, requests=300)], 2, 3.0, 100.0, 7)
    assert (told["to_label"], told["sampled"], told["errors"]) == (4000, 200, 40)
    assert told["seconds"] == 3.0 + 40 * 100 / 200
    assert told["images_per_second"] == pytest.approx(4000 / 23, abs=0.01)
    assert (told["memory_mib"], told["memory_mib_per_worker"]) == (600, 200)
    assert told["requests_get"] == 10000
    assert told["requests_put"] == 40 * 2 + round(23 / 2 + 2 * 23 / 5)
    assert told["requests_list"] == 14
    found.tables = 5
    assert estimate(found, [one("a", 0, 1)], 2, 3.0, 100.0, 7)["requests_get"] == 2 * 3 * 5
