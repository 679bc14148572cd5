"""What the machines of a cluster have room for, each process on one of them. Arithmetic alone: Ray is not asked."""

from typing import NamedTuple

TOLERANCE = 1e-6
"""Shares of CPUs are floats: three times a third is a CPU."""


Refusal = tuple[str, str, str]
"""What was received, what was expected, and what to do."""


class Machine(NamedTuple):
    """What one machine offers."""

    cpus: float
    gpus: float = 0.0

    def room(self, cpus: float, gpus: float = 0) -> int:
        """How many processes of so many CPUs and GPUs each it has room for; one of them is more than 0.

        A share of a GPU lies on one: eight have room for sixteen times 0.4, and not for twenty.
        """
        rooms = [int((self.cpus + TOLERANCE) / cpus)] if cpus else []
        if gpus:
            whole = int((self.gpus + TOLERANCE) / max(gpus, 1))
            rooms.append(whole * (int(1 / gpus + TOLERANCE) or 1))
        return min(rooms)


class Machines(tuple[Machine, ...]):
    """Those of a cluster."""

    @property
    def cpus(self) -> float:
        """CPUs of all."""
        return sum(one.cpus for one in self)

    @property
    def gpus(self) -> float:
        """GPUs of all."""
        return sum(one.gpus for one in self)

    def room(self, cpus: float, gpus: float = 0) -> int:
        """How many processes of so many CPUs and GPUs each they have room for, none of them across machines."""
        return sum(one.room(cpus, gpus) for one in self)

    def together(self, workers: int, threads: int, gpus: float = 0) -> int:
        """How many of so many workers may come to lie on one machine."""
        return max(1, min(workers, max((one.room(threads, gpus) for one in self), default=1)))

    def threads(self, workers: int, gpus: float = 0) -> int:
        """The most CPUs that each of so many workers can have beside its GPUs, as many at once as there is room for."""
        workers = max(1, min(workers, self.room(1, gpus)))
        for threads in range(int(max((one.cpus for one in self), default=1.0)), 1, -1):
            if self.room(threads, gpus) >= workers:
                return threads
        return 1

    def lacks(self, cpus: float, gpus: float = 0, processes: int = 1) -> Refusal | None:
        """Why they have no room for so many processes of so many CPUs and GPUs each; None where they have."""
        if not processes:
            return None
        most_gpus = max((machine.gpus for machine in self), default=0.0)
        beside = [machine.cpus for machine in self if machine.gpus + TOLERANCE >= gpus]
        largest = f"largest machine{' with GPUs' if gpus else ''}"
        each = f"processes were asked for, of {cpus:g} CPUs{f' and {gpus:g} GPUs' if gpus else ''} each"
        larger = "ask for fewer, or add larger machines"
        return self.lacks_in_all(cpus * processes, gpus * processes) or _first_too_much(
            (gpus, most_gpus, "GPUs were asked for in one process", "largest machine has", larger),
            (cpus, max(beside, default=0.0), "CPUs were asked for in one process", f"{largest} has", larger),
            (processes, self.room(cpus, gpus), each, "machines have room for", "ask for fewer, or add machines"),
        )

    def lacks_in_all(self, cpus: float, gpus: float) -> Refusal | None:
        """Why they do not have so many CPUs and GPUs together; None where they have."""
        nodes = "ask for fewer workers or CPUs, or add nodes"
        gpu_nodes = "ask for fewer GPUs or workers (each has its own), or add nodes that have them"
        return _first_too_much(
            (cpus, self.cpus, "CPUs were asked for", "cluster has", nodes),
            (gpus, self.gpus, "GPUs were asked for", "cluster has", gpu_nodes),
        )


def _first_too_much(*rows: tuple[float, float, str, str, str]) -> Refusal | None:
    """The first row of what is asked for, what is there, what was asked, whose it is and what to do, that is short."""
    for asked, there, what, owner, way in rows:
        if asked > there + TOLERANCE:
            return f"{asked:g} {what}", f"at most the {there:g} that the {owner}", way
    return None
