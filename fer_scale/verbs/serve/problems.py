"""Errors as application/problem+json (RFC 9457)."""

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette.responses import Response

MEDIA_TYPE = "application/problem+json"


class Problem(Exception):
    """A request that gets no answer, and why.

    Args:
        status: the HTTP status.
        kind: the last word of the problem's type, e.g. ``image-unreadable``.
        detail: one line for a person: what was received, and what would have been accepted.
        headers: further response headers.
        more: further members of the problem document.
    """

    def __init__(
        self, status: int, kind: str, detail: str, headers: Mapping[str, str] | None = None, **more: Any
    ) -> None:
        super().__init__(f"{status} {kind}: {detail}")
        self.status = status
        self.kind = kind
        self.detail = detail
        self.headers = dict(headers or {})
        self.more = more

    def response(self, request_id: str) -> Response:
        """The document; ``instance`` is the request's id, by which the endpoint's log names a fault."""
        document = {
            "type": f"urn:fer-scale:problem:{self.kind}",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
            "instance": f"urn:uuid:{request_id}",
            **self.more,
        }
        return Response(json.dumps(document), self.status, self.headers, media_type=MEDIA_TYPE)
