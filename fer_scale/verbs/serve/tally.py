"""The counts of all replicas as a Ray Serve deployment; light, so that its process loads no network."""

from ray import serve

from fer_scale.verbs.serve.metrics import Tally

TallyDeployment = serve.deployment(
    name="Tally", num_replicas=1, ray_actor_options={"num_cpus": 0}, max_ongoing_requests=1000
)(Tally)
"""`Tally`, called by every replica once a second, and for each GET /metrics."""
