"""The counts of all replicas as a Ray Serve deployment; light, so that its process loads no network."""

from ray import serve

from fer_scale.verbs.serve.metrics import Snapshot, Tally


@serve.deployment(name="Tally", num_replicas=1, ray_actor_options={"num_cpus": 0}, max_ongoing_requests=1000)
class TallyDeployment:
    """`Tally`, called by every replica once a second and for each GET /metrics."""

    def __init__(self) -> None:
        self._tally = Tally()

    async def exchange(self, replica: str, counts: Snapshot) -> Snapshot:
        """See `Tally.exchange`."""
        return self._tally.exchange(replica, counts)
