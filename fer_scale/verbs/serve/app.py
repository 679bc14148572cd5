"""The endpoint on Ray Serve: what a replica is, and the application that `serve run` and `serve deploy` take.

serve run fer_scale.verbs.serve.app:build bundle=s3://bucket/bundle replicas=2
"""

from dataclasses import fields
from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.config import BackpressureConfig
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from fer_scale import storage
from fer_scale.bundle import Bundle
from fer_scale.errors import InputError
from fer_scale.learning.acceptance import Acceptance, promise
from fer_scale.predictor import Predictor
from fer_scale.verbs.serve.limits import Limits, share
from fer_scale.verbs.serve.metrics import Snapshot
from fer_scale.verbs.serve.service import Service
from fer_scale.verbs.serve.tally import TallyDeployment
from fer_scale.verbs.serve.token import read_token
from fer_scale.verbs.serve.web import create_app

ROOM = 32
"""Requests that a replica takes beyond `Limits.max_waiting`: health is answered, and refusals are its own."""

SCALING = {"target_ongoing_requests": 16, "upscale_delay_s": 5, "downscale_delay_s": 30}
"""One replica more where each has over 16 requests at hand for 5 s, one less where fewer would do for 30 s."""
CLOSING_SECONDS = 5
"""Beyond `Limits.max_seconds`, for a replica that is taken away to answer what it has."""


class _Shared:
    """See `web.Shared`."""

    def __init__(self, tally: "DeploymentHandle[Any]", replica: str) -> None:
        self._tally = tally
        self._replica = replica

    async def hand_in(self, counts: Snapshot, first: bool) -> None:
        await self._tally.hand_in.remote(self._replica, counts, first)

    async def total(self) -> Snapshot:
        found: Snapshot = await self._tally.total.remote()
        return found


@serve.deployment(
    ray_actor_options={"num_cpus": 1},
    backpressure_config=BackpressureConfig(status_code=503, retry_after_s=1),
    health_check_period_s=5,
    graceful_shutdown_wait_loop_s=0.5,
)
@serve.ingress()
class Endpoint:
    """One replica: the model, loaded once, behind the web application.

    ONNX Runtime gets one thread: more cores are used by more replicas.
    """

    def __init__(
        self,
        bundle: str,
        limits: Limits,
        token_digest: str | None,
        acceptance: Acceptance | None,
        address: tuple[str, int] | None,
        tally: "DeploymentHandle[Any]",
    ) -> None:
        self._tally = _Shared(tally, serve.get_replica_context().replica_id.unique_id)
        predictor = Predictor.load(bundle, engine="onnx", threads=1)
        self._service = Service(predictor, limits, token_digest, acceptance)
        self._address = address

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return create_app(self._service, self._tally, self._address)


def build(args: dict[str, Any]) -> Application:
    """The application, as `serve run` and `serve deploy` ask for it: Ray Serve takes no builder of two parameters.

    Args:
        args: see `application`.

    Raises:
        InputError: an argument is missing, unknown or of no use.
    """
    return application(args)


def application(args: dict[str, Any], address: tuple[str, int] | None = None) -> Application:
    """The application.

    Args:
        args: ``bundle`` (a path, local or s3://, that every node can read), and optionally ``replicas`` (1),
            ``max_replicas`` (as many are added under load, and taken away again; ``replicas`` may then be 0),
            ``token_file``, ``max_error`` (see `learning.acceptance`) and the fields of `Limits`; values may be text,
            as `serve run` gives them.
        address: host and port on which replicas listen themselves; None leaves that to Ray Serve.

    Raises:
        InputError: an argument is missing, unknown or of no use.
    """
    known = {
        "bundle",
        "replicas",
        "max_replicas",
        "token_file",
        "max_error",
        *(field.name for field in fields(Limits)),
    }
    unknown = sorted(set(args) - known)
    if unknown or not args.get("bundle"):
        raise InputError(
            f"arguments {', '.join(map(repr, sorted(args))) or '(none)'}",
            f"bundle, and none but {', '.join(sorted(known))}",
            "give bundle=PATH" if not unknown else f"leave out {', '.join(unknown)}",
        )
    limits = Limits(
        **{field.name: _whole(field.name, args[field.name]) for field in fields(Limits) if field.name in args}
    )
    replicas = _whole("replicas", args.get("replicas", 1), least=0 if "max_replicas" in args else 1)
    most = _whole("max_replicas", args.get("max_replicas", replicas), least=max(1, replicas))
    bundle = storage.normal(str(args["bundle"]))
    token_digest = read_token(args["token_file"]) if args.get("token_file") else None
    acceptance = promise(Bundle.load(bundle), share(args["max_error"])) if args.get("max_error") is not None else None
    deployment = Endpoint.options(  # type: ignore[attr-defined]
        num_replicas=replicas if "max_replicas" not in args else None,
        autoscaling_config={**SCALING, "min_replicas": replicas, "max_replicas": most}
        if "max_replicas" in args
        else None,
        graceful_shutdown_timeout_s=limits.max_seconds + CLOSING_SECONDS,
        max_ongoing_requests=limits.max_waiting + ROOM,
        max_queued_requests=2 * limits.max_waiting * most,
    )
    app: Application = deployment.bind(bundle, limits, token_digest, acceptance, address, TallyDeployment.bind())
    return app


def _whole(name: str, value: Any, least: int | None = None) -> int:
    try:
        number = int(value)
    except (TypeError, ValueError):
        raise InputError(f"{name}={value!r}", "a whole number", "correct it") from None
    if least is not None and number < least:
        raise InputError(f"{name}={number}", f"at least {least}", "raise it")
    return number
