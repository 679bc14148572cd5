"""A verb on a cluster without a single CPU whose autoscaler, Ray's own with nodes on this machine, brings them."""

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest
from ray._private.services import get_node_ip_address

from fer_scale.faces.sample import draw
from tests.bundles import write_bundle

EMPTY = ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands")
EMPTY += ("head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files", "rsync_exclude")


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in opened:
            one.bind(("", 0))
        return [one.getsockname()[1] for one in opened]


def configuration(gcs: str) -> dict[str, object]:
    """Workers of two CPUs, two at most."""
    worker = {"resources": {"CPU": 2}, "node_config": {}, "min_workers": 0, "max_workers": 2}
    head = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
    provider = {"type": "fake_multinode", "use_node_id_as_ip": True, "gcs_address": gcs}
    return {
        "cluster_name": "fake",
        "max_workers": 2,
        "idle_timeout_minutes": 5,
        "provider": {**provider, "disable_node_updaters": True, "disable_launch_config_check": True},
        "head_node_type": "ray.head.default",
        "available_node_types": {"ray.head.default": head, "worker": worker},
        **{name: {} for name in ("docker", "auth", "file_mounts")},
        **{name: [] for name in (*EMPTY, "rsync_filter")},
        "file_mounts_sync_continuously": False,
        "upscaling_speed": 1.0,
    }


@pytest.mark.slow
def test_a_verb_waits_for_the_machines_that_it_asks_for(tmp_path: Path) -> None:
    draw(tmp_path / "faces", 400, seed=0)
    bundle = write_bundle(tmp_path / "bundle")
    folder = Path(tempfile.mkdtemp(prefix="fs-"))  # short: sockets live below it
    ports = free_ports(6)
    gcs = f"{get_node_ip_address()}:{ports[0]}"
    (folder / "cluster.json").write_text(json.dumps(configuration(gcs)))
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        **{"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_TMPDIR": str(folder)},
        **{"AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1", "RAY_USAGE_STATS_ENABLED": "0"},
        "RAY_ADDRESS": gcs,
        "FER_SCALE_AUTOSCALER_SECONDS": "120",
    }
    names = ("port", "dashboard-port", "ray-client-server-port", "dashboard-agent-listen-port")
    names += ("dashboard-agent-grpc-port", "metrics-export-port")
    command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--num-cpus=0"]
    command += [f"--autoscaling-config={folder}/cluster.json", f"--temp-dir={folder}/ray"]
    command += [f"--{name}={port}" for name, port in zip(names, ports, strict=True)]
    with (folder / "log").open("w") as log:
        head = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        verb = [sys.executable, "-m", "fer_scale", "label", str(bundle), str(tmp_path / "faces"), str(tmp_path / "out")]
        health = [command[0], "health-check", "--address", gcs]
        while subprocess.run(health, env=environment, capture_output=True).returncode:
            assert head.poll() is None, (folder / "log").read_text()
        options = ["--include", "*.png", "--workers", "3", "--json"]
        done = subprocess.run([*verb, *options], env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        assert "waiting for the autoscaler to bring 3 CPUs" in " ".join(done.stderr.split())
        assert json.loads(done.stdout.splitlines()[-1])["labelled"] == 400
    finally:
        family = [psutil.Process(head.pid), *psutil.Process(head.pid).children(recursive=True)]
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        head.wait()
        psutil.wait_procs(family, timeout=30)
        shutil.rmtree(folder, ignore_errors=True)
