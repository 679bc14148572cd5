"""The one shape of network that every family builds: normalisation, backbone, head."""

from collections.abc import Sequence
from typing import Self, cast

import torch
from torch import Tensor, nn

GRAY_LEVELS = 255.0
PLAIN_MEAN = 0.5 * GRAY_LEVELS
"""Mean that networks without ImageNet weights subtract, in gray levels (0..255)."""
PLAIN_STD = 0.25 * GRAY_LEVELS
"""What they divide by, in gray levels; faces in FER2013 have mean 129 and deviation 65."""


class Network(nn.Module):
    """Pixels to logits.

    The backbone is a sequence of named stages from the input on; its last module has no parameters and turns
    the feature map into one vector a picture, so that the head can be fitted on stored features.

    Args:
        backbone: the stages, then the pooling or flattening; [N, C, S, S] to [N, F].
        head: [N, F] to [N, K] logits. Mostly with batch norm: torch refuses a training batch of 1.
        channels: channels of the pictures, 1 or 3.
        mean: what is subtracted, in gray levels (0..255), one value or one a channel.
        std: what is divided by, in gray levels, one value or one a channel.
        weights: which weights the backbone really started from, from :func:`fer_scale.families.weights.load`.
        frozen: how many of the first stages are not trained.

    Attributes:
        mirrored: answer, once fitted, with the mean of the logits of a picture and its mirror image (Krizhevsky et al.
            2012, section 4.1, with one crop). It is part of the network so that whatever runs it agrees.
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        backbone: nn.Sequential,
        head: nn.Module,
        *,
        channels: int,
        mean: Sequence[float] = (PLAIN_MEAN,),
        std: Sequence[float] = (PLAIN_STD,),
        weights: str = "none",
        frozen: int = 0,
    ) -> None:
        super().__init__()
        # Of the process: TF32 would be another function than the one that thresholds are proven on, and steps on GPUs
        # that have it run in bfloat16. For products of matrices it is off by default.
        torch.backends.cudnn.allow_tf32 = False
        self.backbone = backbone
        self.head = head
        self.mirrored = False
        self.weights = weights
        # One value a channel whatever was given: a state dict then fits whatever the network began with.
        self.register_buffer("mean", torch.tensor(mean).expand(channels).reshape(1, -1, 1, 1).clone())
        self.register_buffer("scale", (1.0 / torch.tensor(std)).expand(channels).reshape(1, -1, 1, 1).clone())
        self.frozen = 0
        self.freeze(frozen)

    def forward(self, x: Tensor) -> Tensor:
        """uint8 or float [N, C, S, S] in 0..255 to float logits [N, K]."""
        if self.mirrored and not self.training:
            both = self.head(self.features(torch.cat([x, x.flip(-1)])))
            return cast(Tensor, both.unflatten(0, (2, -1)).mean(0))
        return cast(Tensor, self.head(self.features(x)))

    def features(self, x: Tensor) -> Tensor:
        """uint8 or float [N, C, S, S] in 0..255 to the backbone's output, float [N, F]."""
        return cast(Tensor, self.backbone(self._normalise(x)))

    def _normalise(self, x: Tensor) -> Tensor:
        return (x.to(self.scale.dtype) - self.mean) * self.scale

    @property
    def stages(self) -> list[list[nn.Parameter]]:
        """Parameters from the input on, one list a stage and the head's last; frozen ones are among them."""
        return [list(stage.parameters()) for stage in self._trainable()] + [list(self.head.parameters())]

    def _trainable(self) -> list[nn.Module]:
        """The backbone's stages that have parameters."""
        return [stage for stage in self.backbone if next(stage.parameters(), None) is not None]

    def freeze(self, count: int) -> None:
        """Freeze the first ``count`` stages, batch norm statistics included, and train all others.

        Call it again with a smaller count to unfreeze step by step.

        Raises:
            ValueError: there are fewer stages.
        """
        stages = self._trainable()
        if not 0 <= count <= len(stages):
            raise ValueError(f"0 <= count <= {len(stages)} must hold, but got {count}")
        self.frozen = count
        for index, stage in enumerate(stages):
            stage.requires_grad_(index >= count)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """As in torch, but frozen stages stay in evaluation mode."""
        super().train(mode)
        for stage in self._trainable()[: self.frozen]:
            stage.eval()
        return self
