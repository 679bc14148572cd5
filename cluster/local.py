"""A cluster of several machines that are all this one, for trying things out; Ctrl-C ends it.

    python cluster/local.py --nodes 3 --cpus 2
    python cluster/local.py --nodes 3 --gpus 1      # GPUs in name only, to see where work would go

It prints what to set in another shell. Each node is a raylet of its own, as a machine would be; its process's number is
printed, and `kill -9` takes that machine away in the middle of whatever runs on it.
"""

import argparse
import contextlib
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

OBJECT_STORE = 200_000_000
"""Bytes a node; all of them share this machine's /dev/shm."""


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        port: int = opened.getsockname()[1]
        return port


@contextlib.contextmanager
def cluster(nodes: int, cpus: float, gpus: float, head_cpus: float = 0) -> Iterator[list[int]]:
    """Start it, put into this process's environment how to reach it, give the raylets' numbers; end it with the block.

    The head does no work of its own, as on the other clusters of this folder. Whoever connects needs the token, and the
    files lie in a folder of their own, so that no other Ray on this machine is disturbed.
    """
    folder = Path(tempfile.mkdtemp(prefix="fs-"))  # short: Unix sockets lie below it
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    os.environ |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_TMPDIR": str(folder),  # where `ray start` would say which cluster is this machine's
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    from ray.cluster_utils import Cluster  # reads the environment

    common = {"object_store_memory": OBJECT_STORE}
    dashboard = {"include_dashboard": True, "dashboard_host": "127.0.0.1", "dashboard_port": free_port()}
    running = Cluster(shutdown_at_exit=False)
    try:
        running.add_node(num_cpus=head_cpus, dashboard_agent_listen_port=free_port(), **dashboard, **common)
        added = [running.add_node(num_cpus=cpus, num_gpus=gpus, **common) for _ in range(nodes)]
        os.environ["RAY_ADDRESS"] = running.address
        os.environ["RAY_API_SERVER_ADDRESS"] = f"http://{running.head_node.webui_url}"
        yield [node.all_processes["raylet"][0].process.pid for node in added]
    finally:
        running.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=3, help="machines beside the head")
    parser.add_argument("--cpus", type=float, default=1, help="of each")
    parser.add_argument("--gpus", type=float, default=0, help="of each, in name only")
    given = parser.parse_args()
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    with cluster(given.nodes, given.cpus, given.gpus) as raylets:
        for names in (("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"), ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH")):
            print("export", *(f"{name}={os.environ[name]}" for name in names))
        print(*(f"# node {number}: kill -9 {pid}" for number, pid in enumerate(raylets, 1)), sep="\n", flush=True)
        print("running; Ctrl-C ends it", file=sys.stderr, flush=True)
        ended.wait()


if __name__ == "__main__":
    main()
