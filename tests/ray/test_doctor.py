"""doctor on a real local Ray, and what it makes of machines that are not well."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from conftest import S3_SETTINGS

import fer_scale
from fer_scale import cli, diagnosis
from fer_scale.cluster import connected
from fer_scale.diagnosis import GIB, Machine, begin_probe, judge, look
from fer_scale.errors import InputError
from fer_scale.provenance import versions
from fer_scale.storage import list_files

WELL = Machine(versions(diagnosis.LIBRARIES), disk_free=50 * GIB, disk_total=100 * GIB, shared_memory=8 * GIB, gpus=0)


@pytest.fixture(scope="module")
def bucket(s3_endpoint: str) -> Iterator[str]:
    """A cluster whose processes know the way to a bucket, and the bucket."""
    import boto3

    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**S3_SETTINGS, "AWS_ENDPOINT_URL": s3_endpoint, "AWS_REGION": "us-east-1"}.items():
            patch.setenv(name, value)
        boto3.client("s3", region_name="us-east-1", endpoint_url=s3_endpoint).create_bucket(Bucket="doctor")
        with connected(cpus=1):
            yield "s3://doctor"


def findings(result: dict[str, Any], check: str) -> list[dict[str, Any]]:
    return [one for one in result["findings"] if one["check"] == check]


def test_a_cluster_that_is_well(bucket: str) -> None:
    result = fer_scale.doctor(f"{bucket}/scratch", cpus=1)
    assert result["healthy"], result["findings"]
    assert (result["machines"], result["gpus"]) == (1, 0)
    checks = ("cluster", "resources", "versions", "storage", "disk", "shared memory", "gpu")
    assert {one["check"] for one in result["findings"]} == set(checks)
    assert findings(result, "storage")[0]["level"] == "ok"
    with pytest.raises(InputError, match="there is no"):
        list(list_files(bucket))


def test_what_is_missing_is_said_with_what_mends_it(bucket: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["doctor", "--gpus", "4", "--storage", "s3://not-a-bucket/x", "--json"]) == 2
    said = capsys.readouterr()
    result = json.loads(said.out.splitlines()[-1])
    assert result["problems"] == 2
    assert not result["healthy"]
    (short,), (lost,) = findings(result, "resources"), findings(result, "storage")
    assert "4 GPUs were asked for" in short["found"]
    assert "not-a-bucket" in lost["found"]
    assert "ask for fewer GPUs" in said.err
    assert lost["fix"]
    with pytest.raises(InputError, match="cpus -1"):
        fer_scale.doctor(cpus=-1)


def test_a_local_folder_is_left_as_it_was(bucket: str, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert fer_scale.doctor(tmp_path, quiet=True)["healthy"]
    assert fer_scale.doctor(tmp_path / "new", quiet=True)["healthy"]
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_cpus_that_others_hold_are_a_warning(bucket: str) -> None:
    every = ray.cluster_resources()["CPU"]  # type: ignore[no-untyped-call]

    @ray.remote(num_cpus=every)
    class Holder:
        def ready(self) -> None: ...

    holder = Holder.remote()  # type: ignore[attr-defined]
    ray.get(holder.ready.remote())
    result = fer_scale.doctor(cpus=1, quiet=True)
    ray.kill(holder)
    assert result["healthy"]
    assert findings(result, "resources")[0]["level"] == "warning"


def test_a_cluster_that_is_gone() -> None:
    command = [sys.executable, "-m", "fer_scale", "doctor", "--json", "--quiet"]
    gone = {**os.environ, "RAY_ADDRESS": "127.0.0.1:1"}
    done = subprocess.run(command, env=gone, stdout=subprocess.PIPE, text=True, timeout=100)
    result = json.loads(done.stdout)
    assert (result["healthy"], result["machines"]) == (False, 0)
    assert "RAY_ADDRESS" in result["findings"][0]["fix"]


@pytest.mark.parametrize(
    ("machine", "offered", "check", "level", "said"),
    [
        (replace(WELL, versions={**WELL.versions, "torch": "1.0"}), {}, "versions", "problem", "torch 1.0, here"),
        (replace(WELL, disk_free=4 * GIB), {}, "disk", "problem", "4 of 100 GiB"),
        (replace(WELL, disk_free=8 * GIB), {}, "disk", "warning", "8 of 100 GiB"),
        (WELL, {"object_store_memory": 9.0 * GIB}, "shared memory", "warning", "8.0 GiB, the object store 9.0"),
        (WELL, {"GPU": 2.0}, "gpu", "problem", "Ray offers 2 GPUs, PyTorch sees 0"),
        (replace(WELL, gpus=1), {}, "gpu", "warning", "Ray offers 0 GPUs, PyTorch sees 1"),
        (replace(WELL, storage_error="AccessDenied"), {}, "storage", "problem", "AccessDenied"),
    ],
)
def test_machines_that_are_not_well(
    machine: Machine, offered: dict[str, float], check: str, level: str, said: str
) -> None:
    found = judge({"a": WELL, "b": machine}, {"a": {}, "b": offered}, versions(diagnosis.LIBRARIES))
    wrong = [one for one in found if one.level != "ok"]
    assert [(one.check, one.level, one.machines) for one in wrong] == [(check, level, ("b",))]
    assert said in wrong[0].found
    assert wrong[0].fix


def test_torch_for_gpus_and_for_cpus_are_one_version() -> None:
    own = {**WELL.versions, "torch": "2.14.1+cpu"}
    found = judge({"a": replace(WELL, versions={**own, "torch": "2.14.1"})}, {"a": {}}, own)
    assert {one.level for one in found} == {"ok"}


def test_machines_that_share_no_folder(tmp_path: Path) -> None:
    probe, problems = begin_probe(str(tmp_path / "here"))
    assert not problems
    assert look("/tmp", probe=probe, name="node")["storage_seconds"] is not None
    assert "is not there" in look("/tmp", probe=str(tmp_path / "there" / "probe"), name="node")["storage_error"]
    assert list((tmp_path / "there").iterdir()) == []
