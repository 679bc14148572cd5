"""The words, examples and shapes of /openapi.json."""

from typing import Any

from pydantic import BaseModel, Field

from fer_scale.verbs.serve.limits import Limits
from fer_scale.verbs.serve.problems import MEDIA_TYPE

DESCRIPTION = (
    "Facial expressions of face pictures: a label, its calibrated confidence and the probability of every "
    "class. The same bytes get the same answer here and from `fer-scale label`. No image is stored, no "
    "address is fetched."
)


class Result(BaseModel):
    """The answer for one image."""

    label: str = Field(description="the most probable class")
    confidence: float = Field(ge=0, le=1, description="its calibrated probability")
    probabilities: dict[str, float] = Field(description="of every class; they sum to 1")
    accepted: bool | None = Field(
        None,
        description="sure enough for the promised error, else for review; only with max_error",
    )


class Predictions(BaseModel):
    """The answers of one request."""

    model_id: str = Field(description="a hash of all that decides the answers")
    results: list[Result] = Field(description="one an image, in order")


class ProblemDocument(BaseModel):
    """RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    instance: str = Field(description="the request's id, by which the log names a fault")


_ANSWER = {
    "model_id": "3f0c9a1be27d5548",
    "results": [
        {
            "label": "happy",
            "confidence": 0.9312045,
            "probabilities": {"happy": 0.9312045, "sad": 0.0101234, "surprised": 0.0196721, "neutral": 0.039},
        }
    ],
}


def _problem(title: str, status: int, kind: str, detail: str) -> dict[str, Any]:
    example = {
        "type": f"urn:fer-scale:problem:{kind}",
        "title": title,
        "status": status,
        "detail": detail,
        "instance": "urn:uuid:6f2d1c1e-7a53-4a44-9f5f-0a5f4d2f5c11",
    }
    schema = {"$ref": "#/components/schemas/ProblemDocument"}
    return {"description": detail, "content": {MEDIA_TYPE: {"schema": schema, "example": example}}}


PREDICT: dict[int | str, dict[str, Any]] = {
    200: {
        "model": Predictions,
        "description": "One result an image, in order.",
        "content": {"application/json": {"example": _ANSWER}},
    },
    400: _problem("Bad Request", 400, "empty", "no image in the body, or a broken multipart body"),
    401: _problem("Unauthorized", 401, "token", "no valid token, where the endpoint asks for one"),
    408: _problem("Request Timeout", 408, "slow-body", "the body took too long"),
    413: _problem("Content Too Large", 413, "body-too-large", "too many bytes, images or pixels"),
    415: _problem("Unsupported Media Type", 415, "media-type", "a body of another type"),
    422: {
        **_problem("Unprocessable Content", 422, "image-unreadable", "an image cannot be read; `errors` names each"),
        "model": ProblemDocument,
    },
    503: _problem("Service Unavailable", 503, "overloaded", "too many requests wait; see Retry-After"),
}


def body(limits: Limits) -> dict[str, Any]:
    """The request body of POST /v1/predict."""
    binary = {"schema": {"type": "string", "format": "binary"}}
    parts = {
        "type": "object",
        "required": ["images"],
        "properties": {
            "images": {
                "type": "array",
                "items": {"type": "string", "format": "binary"},
                "minItems": 1,
                "maxItems": limits.max_images,
            }
        },
    }
    return {
        "requestBody": {
            "required": True,
            "description": f"One image as the body, or up to {limits.max_images} as parts with file names; "
            f"at most {limits.max_bytes:,} bytes in all.",
            "content": {
                "image/*": binary,
                "application/octet-stream": binary,
                "multipart/form-data": {"schema": parts},
            },
        }
    }
