"""Sources that break, wholly or in part, and S3 that does: what is an error row, and what ends the run."""

import gzip
import io
import os
import shutil
import tarfile
import tracemalloc
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from botocore.exceptions import ClientError
from PIL import Image

from fer_scale import _s3, _s3_reading, storage
from fer_scale.errors import InputError
from fer_scale.faces.images import MAX_BYTES, ImageError
from fer_scale.faces.records import Columns
from fer_scale.faces.sources import open_source
from fer_scale.faces.tables import read_picture
from fer_scale.labelling import containers, tables, worker
from fer_scale.labelling.reading import Held, Reader
from fer_scale.labelling.sources import Source
from tests.conftest import S3_SETTINGS
from tests.endpoints import Endpoint, endpoint


def png(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (16, 16), shade).save(buffer, "PNG")
    return buffer.getvalue()


PICTURES = {f"{n:03d}.png": png(n) for n in range(60)}


def tar(mode: str = "w", pictures: dict[str, bytes] = PICTURES) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name, data in pictures.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in PICTURES.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def parquet(rows: dict[str, object] | None = None) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(rows or {"image": list(PICTURES.values())}), buffer)
    return buffer.getvalue()


def sheet() -> bytes:
    return b"image,id\n" + b"".join(b" ".join([b"%d" % n] * 256) + b",%d\n" % n for n in range(60))


KINDS = {
    "faces.tar": tar(), "faces.tar.gz": tar("w:gz"), "faces.zip": zipped(), "faces.parquet": parquet(),
    "faces.csv": sheet(),
}  # fmt: skip


def read(source: Source, target: int = 16) -> tuple[set[str], dict[str, str]]:
    """Ids of what can be read, and ids and reasons of what cannot; they are all there are, each once."""
    reader = Reader(source.image_column, source.id_column)
    good, bad, images = [], {}, 0
    for unit in source.units(target):
        images += unit.size
        for ident, payload in reader.read(unit):
            try:
                assert payload()
                good.append(ident)
            except ImageError as error:
                bad[ident] = f"{error}"
    assert len(good) + len(bad) == len({*good, *bad}) == images
    return set(good), bad


def forget() -> None:
    """What was remembered of the last tar and the last CSV."""
    containers.tar_members.cache_clear()
    containers._csv_length.cache_clear()


@pytest.fixture(scope="module")
def far_away() -> Iterator[Endpoint]:
    with endpoint() as server:
        server.objects = {f"bucket/{name}": data for name, data in KINDS.items()}
        yield server


@pytest.fixture
def far(far_away: Endpoint, monkeypatch: pytest.MonkeyPatch) -> Endpoint:
    url = f"http://127.0.0.1:{far_away.server_port}"
    for name, value in {**S3_SETTINGS, "AWS_ENDPOINT_URL": url}.items():
        monkeypatch.setenv(name, value)
    far_away.good, far_away.cut, far_away.checksum = float("inf"), 0, ""
    return far_away


@pytest.mark.parametrize("kind", KINDS)
def test_in_s3_a_file_takes_a_few_requests_to_list_and_to_read(far: Endpoint, kind: str) -> None:
    source = Source.open(f"s3://bucket/{kind}")
    forget()
    far.asked.clear()
    units = list(source.units(60))
    assert len(far.asked) <= 4, "to list"
    far.asked.clear()
    for unit in units:
        assert len(list(Reader("image", None).read(unit))) == 60
    assert len(far.asked) <= 4, "to read"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("good", [0, 1], ids=["at once", "after it was opened"])
def test_an_outage_ends_the_run_and_is_no_fault_of_the_file(far: Endpoint, kind: str, good: int) -> None:
    source = Source.open(f"s3://bucket/{kind}")
    units = list(source.units(60))
    forget()
    far.good = len(far.asked) + good
    with pytest.raises(InputError, match="ExpiredToken") as said:
        list(source.units(60))
    assert storage.is_outage(said.value)
    far.good = len(far.asked) + good
    with pytest.raises(InputError, match="ExpiredToken"):
        list(Reader("image", None).read(units[0]))


def test_a_body_that_breaks_off_is_asked_for_again(far: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_s3_reading, "PAUSES", (0.0, 0.0))
    far.objects["bucket/a.png"] = png(7)
    far.cut = 2
    assert storage.read_bytes("s3://bucket/a.png") == png(7)
    far.cut = 2
    assert storage.read_bytes("s3://bucket/a.png", MAX_BYTES) == png(7)
    far.cut = 2
    with storage.open_input("s3://bucket/faces.zip") as file:
        assert file.read() == KINDS["faces.zip"]
    far.cut = 3
    with pytest.raises(InputError) as said:
        read_picture("s3://bucket/a.png")
    assert storage.is_outage(said.value)


def test_an_object_as_a_file(s3: str) -> None:
    storage.write_bytes(f"{s3}/empty", b"")
    with storage.open_input(f"{s3}/empty") as file:
        assert file.read() == b""
    data = np.random.default_rng(0).integers(0, 256, 3_000_000, dtype=np.uint8).tobytes()
    storage.write_bytes(f"{s3}/large", data)
    with storage.open_input(f"{s3}/large") as file:
        assert file.read(10) == data[:10]
        file.seek(-5, os.SEEK_END)
        assert file.read() == data[-5:]
        file.seek(999_999)
        assert file.read(1_900_000) == data[999_999:2_899_999]
        storage.write_bytes(f"{s3}/large", data[::-1])
        file.seek(0)
        with pytest.raises(OSError, match="replaced while it was read"):
            file.read(10)


def test_a_damaged_header_in_a_tar_is_an_error_row(tmp_path: Path) -> None:
    data = bytearray(tar())
    at = 1024 * 20  # a header and a block for each picture
    assert data[at : at + 7] == b"020.png"
    data[at + 148 : at + 156] = b"\xff" * 8
    for name, content in (("a.tar", bytes(data)), ("a.tar.gz", gzip.compress(bytes(data)))):
        (tmp_path / name).write_bytes(content)
        good, bad = read(Source.open(str(tmp_path / name)))
        assert good == set(list(PICTURES)[:20])
        assert set(bad) == {name}
        assert "after member 20: ReadError: bad checksum at byte 20,480" in bad[name]
        with pytest.raises(InputError, match="bad checksum"):
            list(open_source(str(tmp_path / name), Columns(), ["happy"]).records())


def test_a_tar_that_breaks_off_keeps_what_is_before(tmp_path: Path) -> None:
    whole = tar("w:gz", {f"{n}": np.random.default_rng(n).bytes(3000) for n in range(60)})
    for name, data in (("a.tar", tar()[: 1024 * 20 + 100]), ("a.tgz", whole[: len(whole) // 2])):
        (tmp_path / name).write_bytes(data)
        good, bad = read(Source.open(str(tmp_path / name)))
        assert 20 <= len(good) < 40
        assert name in bad
        assert len(bad) <= 2, "the rest, and the member that breaks off"


def test_what_python_s_archives_do_not_know_is_an_error_row(tmp_path: Path) -> None:
    new = bytearray(zipped())
    new[new.index(b"PK\1\2") + 6] = 99  # the version that is needed to unpack it
    sparse = tarfile.TarInfo("b.png")
    sparse.pax_headers = {"GNU.sparse.map": "no numbers"}
    with tarfile.open(tmp_path / "sparse.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        first = tarfile.TarInfo("a.png")
        first.size = 9
        archive.addfile(first, io.BytesIO(b"a picture"))
        archive.addfile(sparse)
    (tmp_path / "a.zip").write_bytes(zipped())
    (tmp_path / "new.zip").write_bytes(bytes(new))
    good, bad = read(Source.open(str(tmp_path)))
    assert good == {*(f"a.zip/{name}" for name in PICTURES), "sparse.tar/a.png"}
    assert "NotImplementedError" in bad["new.zip"]
    assert "ValueError" in bad["sparse.tar"]


def test_ids_of_tables_that_cannot_be_read_are_not_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(parquet({"image": [png(1), png(2)], "id": ["a", "b"]}))
    (tmp_path / "b.parquet").write_bytes(b"PAR1 no table PAR1")
    (tmp_path / "c.parquet").write_bytes(parquet({"image": [png(3)]}))
    (tmp_path / "d.csv").write_text("image,name\n1 2 3 4,x\n")
    source = Source.open(str(tmp_path), id_column="id")
    source.check_ids()
    good, bad = read(source)
    assert good == {"a", "b"}
    assert set(bad) == {"b.parquet", "c.parquet", "d.csv"}
    (tmp_path / "e.parquet").write_bytes(parquet({"image": [png(3)], "id": ["a"]}))
    with pytest.raises(InputError, match="'a' stands more than once"):
        source.check_ids()


def test_a_first_table_that_is_broken_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no table PAR1")
    (tmp_path / "b.parquet").write_bytes(parquet())
    with pytest.raises(InputError, match=r"a\.parquet: ArrowInvalid"):
        Source.open(str(tmp_path))


def test_every_table_of_a_manifest_needs_its_columns(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(parquet({"uri": ["/a.png"]}))
    (tmp_path / "b.parquet").write_bytes(parquet({"url": ["/b.png"]}))
    with pytest.raises(InputError, match=r"b\.parquet has no column uri, only url"):
        Source.open(str(tmp_path)).check_ids()
    (tmp_path / "b.parquet").write_bytes(b"PAR1 no table PAR1")
    with pytest.raises(InputError, match=r"b\.parquet \(.*a whole table of URIs"):
        Source.open(str(tmp_path)).check_ids()


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_replaced_or_gone_after_listing_gives_error_rows(tmp_path: Path, kind: str) -> None:
    path = tmp_path / kind
    path.write_bytes(KINDS[kind])
    (unit,) = Source.open(str(path)).units(60)
    path.write_bytes(b"another file")
    reader, reasons = Reader("image", None), []
    for act in (lambda: None, path.unlink):
        act()
        for _, payload in reader.read(unit):
            try:
                assert not payload(), "an archive that became shorter has nothing there"
                reasons.append("empty")
            except ImageError as error:
                reasons.append(error.reason)
    assert len(reasons) == 120
    assert set(reasons[60:]) == {"missing"}


def test_rows_of_large_pictures_are_read_a_few_at_a_time(tmp_path: Path) -> None:
    large = [np.random.default_rng(n).bytes(2**20) for n in range(64)]
    table = pa.table({"image": large})
    pq.write_table(table, tmp_path / "a.parquet", use_dictionary=False, write_batch_size=1)  # a page a row
    del large, table
    (unit,) = Source.open(str(tmp_path / "a.parquet")).units(64)
    before, most = pa.total_allocated_bytes(), 0
    for _ in Reader("image", None).read(unit):
        most = max(most, pa.total_allocated_bytes() - before)
    assert most < 32 * 2**20


def test_a_size_that_a_manifest_says_is_not_believed(tmp_path: Path) -> None:
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(10 * MAX_BYTES)
    tracemalloc.start()
    try:
        with pytest.raises(ImageError, match="more than"):
            read_picture(str(tmp_path / "huge"), 10)
        assert tracemalloc.get_traced_memory()[1] < 2 * MAX_BYTES
    finally:
        tracemalloc.stop()


def test_pictures_wait_within_a_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "AHEAD_BYTES", 1000)
    taken: list[int] = []

    def wanted() -> Iterator[tuple[str, Held]]:
        for n in range(50):
            taken.append(n)
            yield f"{n}", Held(bytes(100))

    with ThreadPoolExecutor(2) as pool:
        found = worker._ahead(pool, lambda ident, _: (ident, ImageError("a", "b")), wanted(), 40)
        assert next(found)[0] == "0"
        assert len(taken) == 11
        assert [ident for ident, _ in found] == [f"{n}" for n in range(1, 50)]


def test_keys_are_what_they_are(s3: str, tmp_path: Path) -> None:
    keys = {"/a.png": png(1), "a.png": png(2), "b/": b"", "c/": png(3), "d//e.png": png(4)}
    for key, data in keys.items():
        _s3.client().put_object(Bucket=s3.removeprefix("s3://"), Key=key, Body=data)
    source = Source.open(s3)
    found = {ident: payload() for unit in source.units(9) for ident, payload in Reader("image", None).read(unit)}
    assert found == {key: data for key, data in keys.items() if data}
    uris = {"uri": [f"{s3}/{key}" for key in keys], "size": [len(data) for data in keys.values()]}
    (tmp_path / "list.parquet").write_bytes(parquet(uris))
    good, bad = read(Source.open(str(tmp_path / "list.parquet")))
    assert good == {f"{s3}/{key}" for key, data in keys.items() if data}
    assert not bad
    storage.delete(s3)
    assert storage.is_empty(s3)


@pytest.mark.parametrize("kind", ["faces.tar", "faces.csv"])
def test_a_long_file_is_listed_once_however_often_it_is_looked_at(far: Endpoint, kind: str) -> None:
    forget()
    source = Source.open(f"s3://bucket/{kind}")
    far.asked.clear()
    assert source.unit_images() == 256
    assert sum(unit.size for unit in source.units(16)) == 60
    assert far.asked == []


def test_links_in_a_tar_are_the_files_that_they_lead_to(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, kind, target in (
            ("./a/1.png", tarfile.REGTYPE, ""),
            ("./b/hard.png", tarfile.LNKTYPE, "./a/1.png"),
            ("./b/soft.png", tarfile.SYMTYPE, "../a/1.png"),
            ("./b/ahead.png", tarfile.SYMTYPE, "2.png"),
            ("./b/2.png", tarfile.REGTYPE, ""),
            ("./b/lost.png", tarfile.SYMTYPE, "nothing.png"),
            ("./c", tarfile.SYMTYPE, "a"),
            ("./d", tarfile.SYMTYPE, "."),
            ("./current", tarfile.SYMTYPE, "e"),
            ("./e/f/3.png", tarfile.REGTYPE, ""),
            ("./empty", tarfile.DIRTYPE, ""),
            ("./g", tarfile.SYMTYPE, "empty"),
            ("./b/twice.png", tarfile.SYMTYPE, "soft.png"),
            ("./b/round.png", tarfile.SYMTYPE, "round.png"),
            ("./b/over.png", tarfile.SYMTYPE, "nothing.png"),
            ("./b/over.png", tarfile.REGTYPE, ""),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            data = png(len(name)) if kind == tarfile.REGTYPE else b""
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    (tmp_path / "a.tar").write_bytes(buffer.getvalue())
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(buffer.getvalue()))
    good, bad = read(Source.open(str(tmp_path / "a.tar")))
    files = {"a/1.png", "b/2.png", "e/f/3.png", "b/over.png"}
    assert good == files | {"b/hard.png", "b/soft.png", "b/ahead.png", "b/twice.png"}
    assert set(bad) == {"b/lost.png", "b/round.png"}
    assert bad["b/lost.png"].startswith("missing")
    good, bad = read(Source.open(str(tmp_path / "a.tar.gz")))
    assert good == files
    assert set(bad) == {f"b/{name}.png" for name in ("hard", "soft", "ahead", "lost", "twice", "round")}


def test_a_cell_costs_no_other_row(tmp_path: Path) -> None:
    good_cell = " ".join(["7"] * 256)
    cells = [good_cell, " " * 70 + "text", f"{good_cell} 12345678901234567890123", good_cell]
    (tmp_path / "a.csv").write_text("pixels,id\n" + "".join(f"{cell},{n}\n" for n, cell in enumerate(cells)))
    good, bad = read(Source.open(str(tmp_path / "a.csv"), image_column="pixels", id_column="id"))
    assert good == {"0", "3"}
    assert set(bad) == {"1", "2"}
    odd = pa.array([png(1), None, png(1)])
    (tmp_path / "a.parquet").write_bytes(parquet({"image": odd, "id": pa.array(["", "", "x"])}))
    source = Source.open(str(tmp_path / "a.parquet"), id_column="id")
    source.check_ids()
    good, bad = read(source)
    assert (good, set(bad)) == ({"a.parquet#0", "x"}, {"a.parquet#1"})


def test_what_goes_while_a_folder_is_listed_is_no_input(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c/d.png", "e.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png(1))
    listed = storage.list_files(str(tmp_path))
    assert next(listed).path.endswith("a.png")
    (tmp_path / "b.png").unlink()
    shutil.rmtree(tmp_path / "c")
    assert [Path(file.path).name for file in listed] == ["e.png"]


def test_an_object_named_as_the_prefix_hides_nothing(s3: str) -> None:
    for name in ("faces", "faces/a.png", "faces/b.png"):
        storage.write_bytes(f"{s3}/{name}", png(1))
    assert read(Source.open(f"{s3}/faces")) == ({"a.png", "b.png"}, {})


def test_a_gateway_that_is_ill_is_an_outage(far: Endpoint) -> None:
    for status, code, outage in ((502, "502", True), (503, "SlowDownRead", True), (501, "NotImplemented", False)):
        error = ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, "GetObject")
        with pytest.raises(InputError) as said, _s3.translated("s3://bucket/a.png"):
            raise error
        assert storage.is_outage(said.value) == outage


def test_an_object_that_is_not_what_its_checksum_says_is_an_error_of_its_own(
    far: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_s3_reading, "PAUSES", (0.0,))
    far.objects["bucket/damaged.png"] = png(7)
    far.checksum = "AAAAAA=="
    with pytest.raises(InputError) as said:
        storage.read_bytes("s3://bucket/damaged.png")
    assert not storage.is_outage(said.value)


def test_a_file_that_was_named_is_what_its_ending_says(tmp_path: Path) -> None:
    (tmp_path / "_faces.parquet").write_bytes(parquet())
    good, _ = read(Source.open(str(tmp_path / "_faces.parquet")))
    assert len(good) == 60


def test_ids_of_a_manifest_are_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    (tmp_path / "list.parquet").write_bytes(parquet({"uri": ["a.png"] * 3, "n": [0, 1, 2]}))
    assert read(Source.open(str(tmp_path / "list.parquet"), id_column="n"))[0] == {"0", "1", "2"}
    (tmp_path / "named.parquet").write_bytes(parquet({"uri": ["a.png"]}))
    for column in (None, "uri"):
        named = Source.open(str(tmp_path / "named.parquet"), id_column="uri", uri_column=column)
        assert read(named)[0] == {"a.png"}


def test_a_folder_with_a_manifest_of_another_kind_is_one_of_pictures(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a.png").write_bytes(png(1))
    (tmp_path / "manifest.json").write_text('{"a": 1}\n{"a": 2}\n')
    assert read(Source.open(str(tmp_path)))[0] == {"data/a.png", "manifest.json"}


def test_a_link_that_leads_nowhere_is_an_error_row(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    (tmp_path / "b.png").symlink_to("a.png")
    (tmp_path / "c.png").symlink_to("nothing.png")
    (tmp_path / "d.png").symlink_to("d.png")
    good, bad = read(Source.open(str(tmp_path)))
    assert good == {"a.png", "b.png"}
    assert bad["c.png"].startswith("missing")
    assert bad["d.png"].startswith("unreadable")


def test_a_cell_that_is_no_text_is_an_error_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    (tmp_path / "a.csv").write_bytes(b"image,id\na.png,1\n\xff.png,2\na.png,\xe9\n")
    paths = pa.array([b"a.png", b"\xff.png", b"a.png", None]).view(pa.string())
    (tmp_path / "a.parquet").write_bytes(parquet({"image": paths, "id": pa.array(["1", "2", None, "4"])}))
    source = Source.open(str(tmp_path / "a.csv"), id_column="id")
    source.check_ids()
    good, bad = read(source)
    assert (good, set(bad)) == ({"1", "\\xe9"}, {"2"})
    good, bad = read(Source.open(str(tmp_path / "a.parquet"), id_column="id"))
    assert (good, set(bad)) == ({"1", "a.parquet#2"}, {"2", "4"})


def test_a_quote_that_is_never_closed_costs_what_follows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MAX_CELL", 1000)
    (tmp_path / "a.csv").write_bytes(b"image\n" + b"1 2 3 4\n" * 5 + b'"' + b"1 2 3 4\n" * 200)
    good, bad = read(Source.open(str(tmp_path / "a.csv")))
    assert good == {f"a.csv#{n}" for n in range(5)}
    assert "field larger" in bad["a.csv"]


def test_a_table_near_by_may_name_pictures_far_away(tmp_path: Path) -> None:
    for cell, remote in (("s3://bucket/a.png", True), ("a.png", False), ("1 2 3 4", False)):
        (tmp_path / "a.csv").write_text(f"image\n{cell}\n")
        assert Source.open(str(tmp_path / "a.csv")).remote is remote
        (tmp_path / "a.parquet").write_bytes(parquet({"image": [cell]}))
        assert Source.open(str(tmp_path / "a.parquet")).remote is remote
    (tmp_path / "a.tar").write_bytes(tar())
    assert not Source.open(str(tmp_path / "a.tar")).remote
    assert Source.open(str(tmp_path / "a.parquet"), uri_column="image").remote
