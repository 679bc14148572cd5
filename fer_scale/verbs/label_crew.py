"""The actors of a labelling run: each is given a unit as soon as it is free, and replaced when it dies.

They are plain Ray actors. Ray Data would do this, too, with an actor for its statistics, one for its autoscaler and a
task for the listing, each of which loads Ray Data, as every labelling actor then does: four seconds of a two-core
machine before the first picture, and tasks of an actor whose machine is gone wait for its return.
"""

import queue
import threading
from collections import Counter, deque
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

import ray
from ray.exceptions import RayActorError

from fer_scale.errors import FerScaleError

if TYPE_CHECKING:
    from fer_scale.verbs.label_stream import Job

ACTOR_CPUS = 1
UNITS_AT_ONCE = 2
"""Units that an actor which fetches ahead has in hand: one is inferred while the other is fetched or published."""
MOST_DEATHS = 5
"""Actors that a unit may cost. A machine is lost now and then; a picture that kills its actor does so every time."""
LOOK_SECONDS = 0.05
"""Between two looks at a listing that is slower than the actors."""

Row = tuple[bytes, str]
"""A unit for an actor, or a message for the driver."""
Item = TypeVar("Item")


class Ahead(Generic[Item]):
    """Items that a thread takes from an iterator, at most ``most`` ahead of who asks for them."""

    def __init__(self, items: Iterator[Item], most: int) -> None:
        self._items = items
        self._queue: queue.Queue[Item | BaseException | None] = queue.Queue(most)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._fill, name="listing", daemon=True)
        self.ended = False
        """Whether all items were taken."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(timeout=1.0)  # it may wait for a bucket; nobody waits for it any more

    def take(self) -> Item | None:
        """The next item, or None where there is none yet or, once `ended`, none any more."""
        try:
            found = None if self.ended else self._queue.get_nowait()
        except queue.Empty:
            return None
        if isinstance(found, BaseException):
            raise found
        self.ended = found is None
        return found

    def _fill(self) -> None:
        try:
            for item in self._items:
                if not self._put(item):
                    return
            self._put(None)
        except BaseException as error:  # is raised where the items are taken
            self._put(error)

    def _put(self, item: Item | BaseException | None) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False


class Crew:
    """As many actors as a job has workers, from `__enter__` to `__exit__`.

    Args:
        job: is given to each actor.
        actor: its ``answer(unit)`` gives a message for the driver, and ``ready()`` nothing.
    """

    def __init__(self, job: "Job", actor: type[Any]) -> None:
        self._job = job
        self._at_once = UNITS_AT_ONCE if job.threads else 1
        self._class = ray.remote(actor).options(
            num_cpus=ACTOR_CPUS,
            num_gpus=1 if job.gpu else 0,
            max_concurrency=self._at_once,
            scheduling_strategy="SPREAD",
        )
        self._actors: set[Any] = set()
        self._free: deque[Any] = deque()
        self._busy: dict[Any, tuple[Any, bytes]] = {}
        """What is waited for: the actor and its unit, or nothing while it starts."""
        self._again: deque[bytes] = deque()
        """Units whose actor died."""
        self._deaths: Counter[bytes] = Counter()

    def __enter__(self) -> Self:
        for _ in range(self._job.workers):
            self._hire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for actor in self._actors:
            ray.kill(actor)

    def answers(self, listing: Ahead[Row]) -> Iterator[str]:
        """What is said by the listing and, of each of its units, by the actor that it was given to.

        Raises:
            FerScaleError: a unit has cost `MOST_DEATHS` actors, or actors die before they are ready.
        """
        while True:
            while self._free and (found := self._next(listing)):
                unit, message = found
                if not unit:
                    yield message
                    continue
                actor = self._free.popleft()
                self._busy[actor.answer.remote(unit)] = actor, unit
            if listing.ended and not self._again and not any(unit for _, unit in self._busy.values()):
                return
            yield from self._answered(None if listing.ended or not self._free else LOOK_SECONDS)

    def _next(self, listing: Ahead[Row]) -> Row | None:
        return (self._again.popleft(), "") if self._again else listing.take()

    def _hire(self) -> None:
        actor = self._class.remote(self._job)
        self._actors.add(actor)
        self._busy[actor.ready.remote()] = actor, b""

    def _answered(self, seconds: float | None) -> Iterator[str]:
        """Wait until something is answered, or for so long."""
        done, _ = ray.wait(list(self._busy), timeout=seconds)
        for reference in done:
            actor, unit = self._busy.pop(reference)
            try:
                answer = ray.get(reference)
            except RayActorError as error:
                self._lost(actor, unit, error)
                continue
            self._free.extend([actor] * (1 if unit else self._at_once))
            self._deaths.pop(unit, None)
            if unit:
                yield answer

    def _lost(self, actor: Any, unit: bytes, error: RayActorError) -> None:
        """Whoever is free next takes the unit, and another actor the place of the one that died."""
        self._deaths[unit] += 1
        if self._deaths[unit] == MOST_DEATHS * (1 if unit else self._job.workers):
            what = f"a work unit ({unit[:200].decode(errors='replace')}...)" if unit else "its start"
            raise FerScaleError(f"an actor has died {self._deaths[unit]} times of {what}: {error}")
        if unit:
            self._again.append(unit)
        if actor in self._actors:
            self._actors.remove(actor)
            self._free = deque(other for other in self._free if other != actor)
            self._hire()
