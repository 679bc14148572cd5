"""The model card that lies in every bundle as README.md (after Mitchell et al. 2019)."""

from typing import Any

from fer_scale.report import render


def card(
    *,
    configuration: dict[str, Any],
    classes: list[str],
    counts: dict[str, dict[str, int]],
    fingerprint: str,
    metrics: dict[str, Any],
    weights: str,
    versions: dict[str, str],
    seconds: float,
) -> str:
    """What the model is, what it was made of, how good it is, what it is for and what not: Markdown.

    Args:
        configuration: `Configuration.to_dict()`.
        classes: in the order of the network's outputs.
        counts: rows of the face store by split and class.
        fingerprint: of the face store.
        metrics: `learning.metrics.summarise` on val, with ``ece_uncalibrated`` and ``temperature``.
        weights: what the network really started from.
        versions: of the libraries that made it.
        seconds: that the fit took.

    Returns:
        The card, with ``{model_id}`` where `fer_scale.bundle.write` puts the id.
    """
    return render(
        "card.md.j2",
        configuration=configuration,
        classes=classes,
        counts=counts,
        fingerprint=fingerprint,
        metrics=metrics,
        weights=weights,
        versions=versions,
        seconds=seconds,
    )
