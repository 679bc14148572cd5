"""Local paths and S3 (a real server over HTTP) by the same functions."""

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fer_scale import _folders, _s3, storage
from fer_scale.errors import InputError, MissingPathError
from fer_scale.faces.images import ImageError
from fer_scale.faces.tables import read_picture


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder in either world."""
    return str(tmp_path) if request.param == "local" else f"{request.getfixturevalue('s3')}/some/prefix"


def below(path: str) -> list[str]:
    return [item.path.removeprefix(path).strip("/") for item in storage.list_files(path)]


def test_paths() -> None:
    assert storage.normal("s3://bucket/a/") == "s3://bucket/a"
    assert storage.normal(Path("s3://bucket/a")) == "s3://bucket/a"
    assert storage.normal("s3://bucket") == "s3://bucket"
    assert storage.normal("file:///tmp/a") == "/tmp/a"
    assert storage.normal("a") == f"{os.getcwd()}/a"
    assert storage.join("s3://bucket/", "a", "b.json") == "s3://bucket/a/b.json"
    assert storage.name("s3://bucket/a/b.json") == "b.json"
    for wrong in ("gs://bucket/a", "", "s3://"):
        with pytest.raises(InputError):
            storage.normal(wrong)


def test_write_read_list_delete(root: str) -> None:
    for name in ("a/2.txt", "a/1.txt", "a.txt", "b"):
        storage.write_bytes(storage.join(root, name), name.encode())
    assert below(root) == ["a.txt", "a/1.txt", "a/2.txt", "b"]
    assert below(storage.join(root, "a")) == ["1.txt", "2.txt"]
    (single,) = storage.list_files(storage.join(root, "b"))
    assert single.size == 1
    storage.write_bytes(single.path, b"changed")
    assert storage.read_bytes(single.path) == b"changed"
    assert storage.read_bytes(single.path, 3) == b"cha"
    assert storage.read_bytes(single.path, 99) == b"changed"
    assert next(iter(storage.list_files(single.path))).version != single.version
    with storage.open_input(single.path) as file:
        file.seek(3)
        assert file.read() == b"nged"
    assert storage.exists(single.path)
    assert not storage.is_dir(single.path)
    assert storage.is_dir(storage.join(root, "a"))
    assert not storage.is_empty(root)
    storage.delete(storage.join(root, "a"))
    assert below(root) == ["a.txt", "b"]
    storage.delete(storage.join(root, "nothing"))


def test_a_large_file_is_there_when_the_block_ends_and_not_when_it_fails(root: str) -> None:
    path = storage.join(root, "folder", "large")
    for text in ("first", "second"):
        with storage.writing(path) as local:
            Path(local).write_text(text)
            assert storage.exists(path) == (text == "second")
        assert storage.read_bytes(path) == text.encode()
    with pytest.raises(ZeroDivisionError), storage.writing(path) as local:
        Path(local).write_text("third")
        raise ZeroDivisionError
    assert storage.read_bytes(path) == b"second"
    assert below(root) == ["folder/large"]
    assert not Path(local).exists()


def test_what_is_missing(root: str) -> None:
    missing = storage.join(root, "missing")
    assert not storage.exists(missing)
    assert storage.is_empty(missing)
    for act in (storage.read_bytes, storage.open_input, storage.fetch_dir, below):
        with pytest.raises(MissingPathError, match="there is no"):
            act(missing)


def test_json_that_is_none(root: str) -> None:
    storage.write_bytes(storage.join(root, "a.json"), b"{")
    with pytest.raises(InputError, match="is no JSON"):
        storage.read_json(storage.join(root, "a.json"))


def test_of_many_that_create_one_wins(root: str) -> None:
    path = storage.join(root, "lease")
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda i: storage.create_bytes(path, str(i).encode()), range(8)))
    assert sum(won) == 1
    assert storage.read_bytes(path) == str(won.index(True)).encode()


def test_pyarrow_writes_and_reads_there(root: str) -> None:
    table = pa.table({"id": ["a", "b"]})
    filesystem, inner = storage.filesystem(storage.join(root, "t.parquet"))
    if not storage.is_s3(root):
        os.makedirs(root, exist_ok=True)
    pq.write_table(table, inner, filesystem=filesystem)
    assert pq.read_table(inner, filesystem=filesystem).equals(table)


def test_published_whole(root: str) -> None:
    out = storage.join(root, "out")
    with storage.publishing(out) as staging:
        (staging / "data").mkdir()
        (staging / "data/a").write_text("a")
        (staging / "manifest.json").write_text("{}")
        assert storage.is_empty(out)
    assert below(out) == ["data/a", "manifest.json"]
    assert below(root) == ["out/data/a", "out/manifest.json"], "nothing else is left"
    assert (storage.fetch_dir(out) / "data/a").read_text() == "a"
    with pytest.raises(InputError, match="not empty"), storage.publishing(out):
        pytest.fail("the block must not be entered")
    with storage.publishing(out, overwrite=True) as staging:
        (staging / "b").write_text("b")
    assert below(root) == ["out/b"]
    assert (storage.fetch_dir(out) / "b").exists(), "a copy of the old version is not taken for the new one"


def test_nothing_is_published_by_a_block_that_fails(root: str) -> None:
    out = storage.join(root, "out")
    storage.write_bytes(storage.join(out, "old"), b"old")
    with pytest.raises(KeyboardInterrupt), storage.publishing(out, overwrite=True) as staging:
        (staging / "new").write_text("new")
        raise KeyboardInterrupt
    assert below(root) == ["out/old"]


def test_a_replacement_in_s3_that_fails_leaves_what_is_left_of_the_old(s3: str) -> None:
    out = f"{s3}/out"
    for inner in ("manifest.json", "data/a", "data/b"):
        storage.write_bytes(storage.join(out, inner), b"old")
    no_key = "\udcff"  # a name that is no UTF-8, which no key can be
    for last, left in (("manifest.json", ["data/a", "data/b"]), (no_key, ["data/a", "data/b", "manifest.json"])):
        with pytest.raises(UnicodeEncodeError), storage.publishing(out, overwrite=True, last=last) as staging:
            (staging / "data").mkdir()
            (staging / "data/a").write_text("new")
            (staging / no_key).write_text("new")
        assert below(out) == left
        storage.write_bytes(storage.join(out, "manifest.json"), b"old")
    assert storage.read_bytes(storage.join(out, "data/b")) == b"old"


def test_an_output_that_is_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    for overwrite in (False, True):
        with storage.publishing(tmp_path / "out", overwrite) as staging:
            (staging / str(overwrite)).touch()
        assert below(str(tmp_path / "disk")) == [str(overwrite)]
    assert (tmp_path / "out").is_symlink()
    storage.write_bytes(tmp_path / "disk/in/a", b"a")
    with pytest.raises(InputError, match="holds the input"):
        storage.check_output(tmp_path / "out", overwrite=True, inputs=[tmp_path / "disk/in"])


def publish_twice_and_fail_once(out: Path) -> None:
    with storage.publishing(out) as staging:
        (staging / "a").mkdir()
        (staging / "a/1").write_text("1")
        (staging / "manifest.json").write_text("{}")
    assert below(str(out)) == ["a/1", "manifest.json"]
    with pytest.raises(InputError, match="not empty"), storage.publishing(out):
        pytest.fail("the block must not be entered")
    with pytest.raises(KeyboardInterrupt), storage.publishing(out, overwrite=True) as staging:
        (staging / "b").write_text("b")
        raise KeyboardInterrupt
    assert below(str(out)) == ["a/1", "manifest.json"]
    with storage.publishing(out, overwrite=True) as staging:
        (staging / "a").write_text("2")
    assert [path.name for path in out.iterdir()] == ["a"]
    assert (out / "a").read_text() == "2"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_published_into_a_folder_below_a_locked_one(tmp_path: Path) -> None:
    out = tmp_path / "lock/out"
    out.mkdir(parents=True)
    out.parent.chmod(0o500)
    try:
        publish_twice_and_fail_once(out)
        storage.delete(out)
        assert list(out.iterdir()) == []
    finally:
        out.parent.chmod(0o700)


def test_published_entry_by_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _folders._is_mount("/proc") or not os.path.exists("/proc/self/mountinfo")
    assert not _folders._is_fixed(str(tmp_path))
    monkeypatch.setattr(_folders, "_is_fixed", os.path.isdir)
    (tmp_path / "out").mkdir()
    publish_twice_and_fail_once(tmp_path / "out")


def test_publishing_into_a_bucket_that_is_not_there(s3: str) -> None:
    with pytest.raises(MissingPathError, match="no bucket"), storage.publishing("s3://not-there/out"):
        pytest.fail("the block must not be entered")


def test_published_folders_can_be_read_by_others(tmp_path: Path) -> None:
    with storage.publishing(tmp_path / "out") as staging:
        (staging / "a").write_text("a")
    plain = tmp_path / "plain"
    plain.mkdir()
    assert (tmp_path / "out").stat().st_mode == plain.stat().st_mode


def test_two_publishers_one_wins(tmp_path: Path) -> None:
    entered = threading.Barrier(2)

    def publish(name: str) -> bool:
        try:
            with storage.publishing(tmp_path / "out") as staging:
                entered.wait(10)
                (staging / name).write_text(name)
        except InputError:
            return False
        return True

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(publish, "ab")) == [False, True]
    assert len(list((tmp_path / "out").iterdir())) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_outputs_that_would_do_harm(root: str) -> None:
    out = storage.join(root, "out")
    storage.check_output(out)
    storage.write_bytes(storage.join(out, "a"), b"a")
    with pytest.raises(InputError, match="--overwrite"):
        storage.check_output(out)
    with pytest.raises(InputError, match="--resume"):
        storage.check_output(out, resume=False)
    storage.check_output(out, resume=True)
    storage.check_output(out, overwrite=True)
    with pytest.raises(InputError, match="drop the other"):
        storage.check_output(out, overwrite=True, resume=True)
    with pytest.raises(InputError, match="holds the input"):
        storage.check_output(root, overwrite=True, inputs=[out])


def test_local_outputs_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is a file"):
        storage.check_output(tmp_path / "file")
    with pytest.raises(InputError, match="below the file"):
        storage.check_output(tmp_path / "file/out")
    with pytest.raises(InputError, match="work in"):
        storage.check_output(Path.cwd().parent, overwrite=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_output_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="cannot be written"):
        storage.check_output(tmp_path / "out")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no space"), storage.publishing(tmp_path / "out"):
        Path("/dev/full").write_bytes(b"x")
    assert list(tmp_path.iterdir()) == []


def test_links_in_a_circle_end_and_one_to_nothing_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/file").write_text("x")
    (tmp_path / "a/up").symlink_to(tmp_path)
    (tmp_path / "again").symlink_to(tmp_path / "a")
    (tmp_path / "dangling").symlink_to("nowhere")
    assert below(str(tmp_path)) == ["a/file", "again/file", "dangling"]


def test_files_go_one_by_one_and_those_that_are_gone_are_passed_over(root: str) -> None:
    paths = [storage.join(root, name) for name in "abc"]
    for path in paths:
        storage.write_bytes(path, b"x")
    storage.delete(paths[1])
    asked = []
    storage.delete_files(paths, lambda: asked.append(1))
    assert not any(map(storage.exists, paths))
    assert len(asked) == (1 if storage.is_s3(root) else 3)
    storage.delete_files([])


def test_what_s3_does_not_delete_is_said(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class MayNotDelete:
        """A client whose policy lacks s3:DeleteObject: S3 answers 200 all the same."""

        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

        def delete_objects(self, Delete: dict[str, Any], **_: Any) -> dict[str, Any]:
            return {"Errors": [{"Key": one["Key"], "Code": "AccessDenied"} for one in Delete["Objects"]]}

    real = _s3.client()
    storage.write_bytes(f"{s3}/a", b"x")
    monkeypatch.setattr(_s3, "client", MayNotDelete)
    with pytest.raises(InputError, match=r"/a, which S3 did not delete \(AccessDenied\).*s3:DeleteObject"):
        storage.delete(f"{s3}/a")


def test_s3_lists_more_than_one_page(s3: str) -> None:
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda i: storage.write_bytes(f"{s3}/many/{i:05}", b""), range(1100)))
    assert below(f"{s3}/many") == [f"{i:05}" for i in range(1100)]
    assert below(s3) == [f"many/{i:05}" for i in range(1100)]
    storage.delete(f"{s3}/many")
    assert storage.is_empty(s3)


def test_a_prefix_is_a_folder_not_a_beginning(s3: str) -> None:
    storage.write_bytes(f"{s3}/faces-old/a", b"a")
    assert not storage.exists(f"{s3}/faces")
    assert storage.is_empty(f"{s3}/faces")


def test_a_missing_bucket(s3: str) -> None:
    for act in (storage.is_empty, storage.exists, storage.read_bytes, below):
        with pytest.raises(MissingPathError, match="no bucket 'not-there'"):
            act("s3://not-there/a")


def test_no_credentials(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(InputError, match="no complete AWS credentials"):
        storage.is_empty(f"{s3}/a")


def test_an_endpoint_that_does_not_answer(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(InputError, match="cannot be reached"):
        storage.is_empty(f"{s3}/a")


def test_wrong_credentials_are_named() -> None:
    from botocore.exceptions import ClientError

    for code in ("InvalidAccessKeyId", "SignatureDoesNotMatch", "403"):
        said = pytest.raises(InputError, match="refuses access to s3://bucket/a")
        with said, _s3.translated("s3://bucket/a"):
            raise ClientError({"Error": {"Code": code, "Message": "no"}}, "HeadObject")


class Tired(BaseHTTPRequestHandler):
    """An S3 endpoint that refuses `left` requests with one error before it answers."""

    left = 0
    error = ("503 Slow Down", "SlowDown")

    def do_GET(self) -> None:
        kind = type(self)
        tired, kind.left = kind.left > 0, kind.left - 1
        status, code = kind.error
        body = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode() if tired else b"a face"
        self.send_response(int(status[:3]) if tired else 200, status[4:] if tired else "OK")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def tired(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Tired]]:
    class Endpoint(Tired):
        pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    yield Endpoint
    server.shutdown()
    server.server_close()


def test_a_throttled_read_is_tried_again(tired: type[Tired]) -> None:
    tired.left = 2
    assert storage.read_bytes("s3://bucket/face.png") == b"a face"


def test_throttling_without_end_stops_a_run_and_is_no_fault_of_the_picture(
    tired: type[Tired], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.0)
    tired.left = 10**6
    with pytest.raises(InputError, match=r"keeps refusing requests for s3://bucket/face.png \(SlowDown\)") as said:
        read_picture("s3://bucket/face.png")
    assert storage.is_outage(said.value)


def test_an_object_that_cannot_be_had_is_an_error_of_that_picture_alone(tired: type[Tired]) -> None:
    tired.left, tired.error = 10**6, ("403 Forbidden", "InvalidObjectState")
    with pytest.raises(ImageError, match="InvalidObjectState"):
        read_picture("s3://bucket/in-the-archive.png")


def test_requests_are_held_to_a_rate(s3: str) -> None:
    storage.write_bytes(f"{s3}/one", b"1")
    storage.limit_requests(50)
    try:
        began = time.monotonic()
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(storage.read_bytes, [f"{s3}/one"] * 25))
        assert time.monotonic() - began >= 24 / 50
    finally:
        storage.limit_requests(None)
