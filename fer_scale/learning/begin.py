"""The network that a fit begins with: new, with pretrained weights, or with an earlier bundle's backbone."""

import platform

from torch import nn

from fer_scale.bundle import Bundle, build
from fer_scale.errors import InputError
from fer_scale.families.network import Network
from fer_scale.learning.configuration import Configuration
from fer_scale.learning.plan import Plan


def begin(plan: Plan, classes: list[str]) -> Network:
    """The network that a fit begins with.

    Raises:
        InputError: weights that were asked for by name cannot be had, or are not those of the plan, or ``init_from``
            has another backbone.
    """
    # no download for weights that would be thrown away
    configuration = Configuration.from_dict(plan.configuration)
    network = build(configuration, len(classes), pretrained=not plan.init_from)
    if plan.init_from:
        take_over(network, Bundle.load(plan.init_from), classes)
        if (unfreeze := getattr(configuration.network, "unfreeze", None)) is not None:
            network.freeze(max(0, len(network.stages) - 1 - unfreeze))  # as with weights of ImageNet
    if plan.weights not in (None, network.weights):
        raise InputError(
            f"weights {network.weights} on {platform.node()}",
            f"{plan.weights}, as where the command runs",
            "install fer_scale[imagenet] on every machine, or name a file on s3:// as weights",
        )
    return network


def empty(configuration: Configuration, classes: list[str], frozen: int) -> Network:
    """A network for a checkpoint's state; which stages are frozen is no part of that."""
    network = build(configuration, len(classes), pretrained=False)
    network.freeze(frozen)
    return network


def take_over(network: Network, bundle: Bundle, classes: list[str]) -> None:
    """Carry the backbone of an earlier fit over, and its head where that has the same shape and classes.

    Raises:
        InputError: the bundle has another backbone.
    """
    donor = bundle.network()
    if not _alike(network.backbone, donor.backbone):
        raise InputError(
            f"--init-from a bundle of {bundle.config['family']} {bundle.config['configuration']['network']}",
            "the same backbone as is fitted",
            "fit it with that bundle's configuration (its config.json), or leave --init-from out",
        )
    network.backbone.load_state_dict(donor.backbone.state_dict())
    network.mean.copy_(donor.mean)
    network.scale.copy_(donor.scale)
    network.weights = f"bundle {bundle.model_id}"
    if bundle.classes == classes and _alike(network.head, donor.head):
        network.head.load_state_dict(donor.head.state_dict())
        network.weights += " with its head"


def _alike(one: nn.Module, other: nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return {name: value.shape for name, value in mine.items()} == {name: value.shape for name, value in theirs.items()}
