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


class Answer(BaseModel):
    """What one face shows."""

    label: str = Field(description="the most probable class")
    confidence: float = Field(ge=0, le=1, description="its calibrated probability")
    probabilities: dict[str, float] = Field(description="of every class; they sum to 1")
    accepted: bool | None = Field(
        None,
        description="true: sure enough for the error that was promised, false: for review; only where the endpoint "
        "was started with a max_error",
    )


class Box(BaseModel):
    """Of a face, in pixels of the upright photograph."""

    x: int = Field(ge=0, description="left edge")
    y: int = Field(ge=0, description="upper edge")
    width: int = Field(ge=1)
    height: int = Field(ge=1)


class Face(Answer):
    """A face that was found in a photograph."""

    box: Box
    score: float = Field(ge=0, le=1, description="how sure the detector is that this is a face")


class Photograph(BaseModel):
    """The faces of one photograph; none is an answer too, and says why."""

    faces: list[Face] = Field(description="the largest first")
    reason: str | None = Field(None, description="only without a face: none_found, or too_small to be a photograph")
    detail: str | None = Field(None, description="only without a face: a line for a person")


class Predictions(BaseModel):
    """The answers of one request."""

    model_id: str = Field(description="a hash of all that decides the answers")
    results: list[Answer | Photograph] = Field(description="one an image, in order; photographs with faces=detect")
    milliseconds: float = Field(ge=0, description="from the request's head to its answer, in the replica")


class ProblemDocument(BaseModel):
    """RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    instance: str = Field(description="the request's id, by which the log names a fault")


_HAPPY = {
    "label": "happy",
    "confidence": 0.9312045,
    "probabilities": {"happy": 0.9312045, "sad": 0.0101234, "surprised": 0.0196721, "neutral": 0.039},
}
_BOXED = {"box": {"x": 82, "y": 52, "width": 97, "height": 119}, "score": 0.9987, **_HAPPY, "accepted": True}
_EMPTY = {"faces": [], "reason": "none_found", "detail": "640x427 pixels"}
_EXAMPLES = {
    "crop": {
        "summary": "a picture of a face",
        "value": {"model_id": "3f0c9a1be27d5548", "results": [_HAPPY], "milliseconds": 3.12},
    },
    "detect": {
        "summary": "faces=detect: two photographs, the second without a face; with a promise about the errors",
        "value": {"model_id": "3f0c9a1be27d5548", "results": [{"faces": [_BOXED]}, _EMPTY], "milliseconds": 141.9},
    },
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


_TOKEN = _problem("Unauthorized", 401, "token", "no valid token, where the endpoint asks for one")
_FULL = _problem("Service Unavailable", 503, "overloaded", "too many requests wait; see Retry-After")

GUARDED: dict[int | str, dict[str, Any]] = {401: {**_TOKEN, "model": ProblemDocument}}
READY: dict[int | str, dict[str, Any]] = {503: {**_FULL, "model": ProblemDocument}}
_NO_TALLY = _problem("Service Unavailable", 503, "tally", "the application is being replaced; see Retry-After")
METRICS: dict[int | str, dict[str, Any]] = {**GUARDED, 503: {**_NO_TALLY, "model": ProblemDocument}}

PREDICT: dict[int | str, dict[str, Any]] = {
    200: {
        "model": Predictions,
        "description": "One result an image, in order.",
        "content": {"application/json": {"examples": _EXAMPLES}},
    },
    400: _problem("Bad Request", 400, "empty", "no image, a broken multipart body, or another query than is known"),
    401: _TOKEN,
    408: _problem("Request Timeout", 408, "slow-body", "the body took too long"),
    413: _problem("Content Too Large", 413, "body-too-large", "too many bytes, images or pixels"),
    415: _problem("Unsupported Media Type", 415, "media-type", "a body of another type"),
    422: {
        **_problem("Unprocessable Content", 422, "image-unreadable", "an image cannot be read; `errors` names each"),
        "model": ProblemDocument,
    },
    501: _problem("Not Implemented", 501, "no-detector", "faces=detect, and the endpoint cannot find faces"),
    503: _FULL,
}


def request(limits: Limits, faces: tuple[str, ...]) -> dict[str, Any]:
    """The query and the body of POST /v1/predict.

    Args:
        faces: what this endpoint takes: crop, and detect where it can find faces.
    """
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
    query = {
        "name": "faces",
        "in": "query",
        "description": f"crop: each image is a face and is labelled as it is. detect: each image is a photograph, "
        f"and up to {limits.max_faces} faces in it are found and labelled, the largest first.",
        "schema": {"type": "string", "enum": list(faces), "default": "crop"},
    }
    return {
        "parameters": [query],
        "requestBody": {
            "required": True,
            "description": f"One image as the body, or up to {limits.max_images} as parts with file names; "
            f"at most {limits.max_bytes:,} bytes in all.",
            "content": {
                "image/*": binary,
                "application/octet-stream": binary,
                "multipart/form-data": {"schema": parts},
            },
        },
    }
