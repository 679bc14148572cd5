"""Two runs on one output, and answers that are lost on the way: what is whose, and who stops."""

import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from fer_scale import lease as leases
from fer_scale import storage
from fer_scale.errors import InputError
from fer_scale.labelling import results
from fer_scale.labelling.ledger import Ledger
from fer_scale.lease import Lease, LeaseLostError
from tests.unit.test_labelling import run_of
from tests.unit.test_merging import settled, unit


class Forgetful(BaseHTTPRequestHandler):
    """An S3 endpoint for one object that keeps a first put and does not say so."""

    held: bytes | None = None
    conflicts = 0
    protocol_version = "HTTP/1.1"

    def do_PUT(self) -> None:
        kind = type(self)
        data = self.rfile.read(int(self.headers["Content-Length"]))
        if kind.conflicts:
            kind.conflicts -= 1
            self._answer(409, b"<Error><Code>ConditionalRequestConflict</Code></Error>")
        elif kind.held is not None:
            self._answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")
        else:
            kind.held = data
            self.close_connection = True

    def do_GET(self) -> None:
        self._answer(200, self.held or b"")

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


def test_a_lease_is_dead_when_its_process_is_gone_whatever_the_clock_says(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    mine = leases._process()
    assert not leases._is_dead(mine)
    assert leases._is_dead({**mine, "started": "1"}), "another process has its number now"
    assert not leases._is_dead({**mine, "machine": "another", "started": "1"}), "which only its heartbeat tells"
    ended = subprocess.Popen(["true"])
    ended.wait()
    assert leases._is_dead({**mine, "pid": ended.pid})


def test_after_the_last_check_no_heartbeat_makes_the_folder_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "BEAT_SECONDS", 0.05)
    out = tmp_path / "out"
    with Lease(str(out), "a run") as lease:
        lease.check(last=True)
        shutil.rmtree(out)
        time.sleep(0.3)
        assert not out.exists()


@pytest.fixture
def forgetful(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Forgetful]]:
    class Endpoint(Forgetful):
        pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    yield Endpoint
    server.shutdown()
    server.server_close()


def test_a_write_whose_answer_was_lost_is_known_for_ones_own(forgetful: type[Forgetful]) -> None:
    assert storage.create_bytes("s3://bucket/lease.json", b"mine")
    assert forgetful.held == b"mine"
    assert not storage.create_bytes("s3://bucket/lease.json", b"theirs")


def test_writes_that_meet_are_repeated_and_not_for_ever(
    forgetful: type[Forgetful], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fer_scale._files.random.uniform", lambda *_: 0.01)
    forgetful.conflicts = 3
    assert storage.create_bytes("s3://bucket/lease.json", b"mine")
    forgetful.conflicts = 10**6
    with pytest.raises(InputError, match=r"keeps refusing to write s3://bucket/lease.json"):
        storage.create_bytes("s3://bucket/lease.json", b"mine")


def test_segments_of_two_runs_differ_whatever_is_in_them(tmp_path: Path) -> None:
    written = []
    for name in ("one", "two"):
        Ledger(str(tmp_path / name)).commit([], 1.0)
        written.append(next((tmp_path / name).rglob("*.jsonl")).read_bytes())
    assert written[0] != written[1]


def content(out: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file() and path.name != "lease.json"}


def test_a_run_that_was_suspended_deletes_and_writes_nothing_of_its_successor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "BEAT_SECONDS", 0.2)
    out = str(tmp_path)
    with Lease(out, "late") as lease:
        late = Ledger(out, lease.check)
        late.commit([unit(tmp_path, "a", 9), unit(tmp_path, "b", 9)], 1.0)
        lease._stop.set()  # its thread stands still, as in a suspended process
        lease._thread.join()
        storage.delete(tmp_path / "lease.json")
        with Lease(out, "next") as other:
            successor = Ledger(out, other.check)
            successor.commit([unit(tmp_path, "c", 9)], 1.0)
            settled(tmp_path, successor)
            lately = unit(tmp_path, "a", 9)
            time.sleep(0.5)
            before = content(tmp_path)
            for step in (
                lambda: results.settle(out, late, list(late.entries), run_of()),
                lambda: results.publish(out, late, run_of(), 18),
                lambda: late.commit([lately], 1.0),
            ):
                with pytest.raises(LeaseLostError):
                    step()
            assert content(tmp_path) == before
            other.check()


def test_taken_over_in_the_middle_of_settling_it_stops_there(tmp_path: Path) -> None:
    """Whatever the step before which the lease is lost, nothing is written or deleted after it."""
    start = Ledger(str(tmp_path / "start"))
    start.commit([unit(tmp_path / "start", name, 9, errors=2) for name in "abcdef"], 1.0)
    settled(tmp_path / "start", start)
    steps, ended = 0, False
    while not ended:
        out = tmp_path / str(steps)
        shutil.copytree(tmp_path / "start", out)
        left, lost = steps, None

        def check(out: Path = out) -> None:
            nonlocal left, lost
            left -= 1
            if left < 0:
                lost = content(out)
                raise LeaseLostError("taken")

        ledger = Ledger(str(out), check)
        try:
            results.settle(str(out), ledger, list(ledger.entries)[1:], run_of())
            ended = True
        except LeaseLostError:
            assert content(out) == lost
        steps += 1
    assert steps > 8, "before the segment, the summary, each file that is written and each that is deleted"


def test_a_number_that_was_deleted_is_no_way_back(tmp_path: Path) -> None:
    first, late = Ledger(str(tmp_path)), Ledger(str(tmp_path))
    first.commit([unit(tmp_path, "a", 9)], 1.0)
    late = Ledger(str(tmp_path))
    successor = Ledger(str(tmp_path))
    successor.commit([unit(tmp_path, "b", 9)], 1.0)
    settled(tmp_path, successor)
    late.commit([unit(tmp_path, "c", 9)], 1.0)  # by the number of the segment that the successor has gathered
    assert Ledger(str(tmp_path)).entries == successor.entries, "it is void"
    with pytest.raises(LeaseLostError):
        late.keep(late.entries)
    assert Ledger(str(tmp_path)).entries == successor.entries
