"""What machines have room for."""

import pytest

from fer_scale.machines import Machine, Machines

HEAD_AND_GPU = Machines((Machine(64), Machine(8, 1)))
"""A large machine without a GPU, as many clusters have for a head, and a small one with."""


def said(machines: Machines, cpus: float, gpus: float = 0, processes: int = 1) -> str:
    """Why there is no room; empty where there is."""
    return "; ".join(machines.lacks(cpus, gpus, processes) or ())


def test_threads_of_workers_never_cross_machines() -> None:
    machines = Machines((Machine(1), Machine(8)))
    assert [machines.threads(workers) for workers in (1, 2, 3, 9)] == [8, 4, 2, 1]


def test_workers_with_gpus_are_counted_on_machines_that_have_them() -> None:
    assert HEAD_AND_GPU.threads(1) == 64
    assert HEAD_AND_GPU.threads(1, gpus=1) == 8
    assert (HEAD_AND_GPU.room(1, 1), HEAD_AND_GPU.room(9, 1), HEAD_AND_GPU.room(9)) == (1, 0, 7)
    several = Machines((Machine(0), Machine(4, 8), Machine(16, 2)))
    assert several.room(1, 1) == 6  # four by CPUs on the one, two by GPUs on the other
    assert [several.threads(workers, gpus=1) for workers in (1, 2, 3, 4, 6)] == [16, 8, 4, 2, 1]
    assert several.threads(8, gpus=1) == 1, "of 1..8 workers the six that there is room for"
    assert (several.together(6, 1, gpus=1), several.together(6, 4, gpus=1), several.together(6, 4)) == (4, 2, 4)


@pytest.mark.parametrize(
    ("machines", "cpus", "gpus", "room"),
    [
        ([Machine(16, 8)], 1, 0.4, 16),
        ([Machine(3), Machine(3)], 2, 0, 2),
        ([Machine(64, 3), Machine(64, 3)], 1, 2, 2),
        ([Machine(2, 4), Machine(16, 1)], 1, 0.25, 6),
        ([Machine(8, 1)], 0.7, 0.1, 10),
        ([Machine(4, 1), Machine(4, 1)], 1, 0.6, 2),
        ([Machine(4, 1), Machine(4, 1)], 1, 1 / 3, 6),
        ([Machine(4, 1), Machine(4, 1)], 1, 2, 0),
    ],
)
def test_a_process_lies_on_one_machine_and_one_gpu(
    machines: list[Machine], cpus: float, gpus: float, room: int
) -> None:
    assert Machines(machines).room(cpus, gpus) == room


def test_more_than_all_of_them_have() -> None:
    two = Machines((Machine(1), Machine(1)))
    assert not said(two, 1, processes=2)
    assert not said(Machines((Machine(0),)), 1, processes=0), "a head alone can still be looked at"
    assert not said(Machines((Machine(2),)), 2 / 3, processes=3)
    assert "3 CPUs were asked for; at most the 2 that the cluster has" in said(two, 1, processes=3)
    assert "1 GPUs were asked for; at most the 0" in said(two, 1, gpus=1)
    assert two.lacks_in_all(2, 0) is None
    assert (two.lacks_in_all(3, 0) or "")[0] == "3 CPUs were asked for"
    assert "or workers" in said(HEAD_AND_GPU, 1, gpus=1, processes=4)


def test_more_than_one_of_them_has() -> None:
    assert not said(HEAD_AND_GPU, 8, gpus=1)
    assert not said(HEAD_AND_GPU, 64)
    beside = "16 CPUs were asked for in one process; at most the 8 that the largest machine with GPUs has"
    assert beside in said(HEAD_AND_GPU, 16, gpus=1)
    two = Machines((Machine(4, 1), Machine(4, 1)))
    assert "2 GPUs were asked for in one process" in said(two, 1, gpus=2)
    assert "6 CPUs were asked for in one process" in said(two, 6)
    crowded = Machines((Machine(64), Machine(2, 4)))
    full = "4 processes were asked for, of 1 CPUs and 1 GPUs each; at most the 2 that the machines have room for"
    assert full in said(crowded, 1, gpus=1, processes=4)
