"""What a frozen backbone makes of the faces: computed once, and fits of the head alone cost next to nothing."""

import json
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from fer_scale.faces.store import Faces
from fer_scale.families.network import Network
from fer_scale.learning.configuration import Configuration
from fer_scale.learning.recipe import Recipe

OF_THE_HEAD = ("dense", "dropout", "unfreeze", "weights")
"""Fields of a network's configuration on which its backbone's features do not depend, and the weights asked for."""
BATCH = 256


def head_alone(network: Network, recipe: Recipe) -> bool:
    """Whether a face is the same vector throughout a fit: neither pictures nor what is before the head change."""
    frozen = network.frozen == len(network.stages) - 1 and not recipe.thaw
    return frozen and not (recipe.augmentation or recipe.mixup or recipe.cutmix)


def backbone(configuration: Configuration, network: Network) -> str:
    """Names what the features depend on; ``network`` says which weights were really loaded."""
    whole = configuration.to_dict()
    kept = {name: value for name, value in whole["network"].items() if name not in OF_THE_HEAD}
    return json.dumps([configuration.family, network.weights, kept, whole["preprocessing"]], sort_keys=True)


@torch.inference_mode()
def features(network: Network, faces: Faces, device: torch.device, *, mirrored: bool = False) -> Faces:
    """The faces with float32 ``[N, F, 1, 1]`` in place of their pictures: F channels of one pixel.

    ``mirrored`` puts the features of the mirror image beside it, ``[N, F, 1, 2]``, so that :func:`head_of` a network
    that answers with both does so too.
    """
    network = network.to(device).to(memory_format=torch.channels_last).eval()
    found = []
    for at in range(0, len(faces), BATCH):
        images = torch.tensor(faces.images[at : at + BATCH], device=device)
        seen = [images, images.flip(-1)] if mirrored else [images]
        made = [network.features(one.contiguous(memory_format=torch.channels_last)).float() for one in seen]
        found.append(torch.stack(made, dim=-1).cpu().numpy())
    return replace(faces, images=np.concatenate(found)[:, :, None])


def head_of(network: Network) -> Network:
    """The network's own head as a network of such faces."""
    head = Network(nn.Sequential(_FirstPixel()), network.head, channels=1, mean=(0.0,), std=(1.0,))
    head.mirrored = network.mirrored
    return head


class _FirstPixel(nn.Module):
    """``[N, F, 1, W]`` to ``[N, F]``: the picture's own features, and the mirror image's where that is flipped."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, 0, 0]
