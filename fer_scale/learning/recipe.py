"""How a network is fitted: one frozen value, the same for a trial of a search and a fit on many workers."""

from dataclasses import dataclass
from typing import Literal

from fer_scale.families.checks import between


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is fitted."""

    optimizer: Literal["sgd", "adamw"] = "adamw"
    """``sgd`` has Nesterov momentum 0.9."""
    lr: float = 1e-3
    """Peak learning rate at ``batch_size``."""
    warmup: float = 0.3
    """Share of the budget over which the rate rises to its peak; then it falls to nothing as a cosine. 0.3 is the
    one-cycle policy (Smith 2018), 0.05 is about that of Loshchilov & Hutter 2017."""
    weight_decay: float = 0.02
    """On weights of two and more dimensions; biases and norms have none."""
    batch_size: int = 64
    """Global: the sum over workers."""
    label_smoothing: float = 0.1
    """Szegedy et al. 2016, section 7."""
    mixup: float = 0.0
    """Beta parameter of mixup (Zhang et al. 2018); 0 leaves it out."""
    cutmix: float = 0.0
    """Beta parameter of cutmix (Yun et al. 2019); 0 leaves it out, and with mixup each takes half of the batches."""
    augmentation: float = 1.0
    """Strength of rotation, scale, shift, shear, contrast, brightness and cutout, of which the last grows up to 1.5;
    half of the pictures are mirrored at any strength but 0, which leaves all out."""
    class_weighting: float = 0.0
    """Exponent of inverse class frequency in the loss: 0 none, 1 balanced."""
    layer_decay: float = 1.0
    """Factor on the learning rate for each stage further from the head."""
    thaw: float = 0.0
    """Share of the budget over which the stages are unfrozen one by one from the head down (Howard & Ruder 2018,
    section 3.3); 0 trains all from the start."""
    ema: float = 0.998
    """Decay a step of the exponential average of the weights (Polyak & Juditsky 1992); 0 leaves it out. Early in a
    fit it is less, so that the average never looks back further than a tenth of the steps taken."""
    clip: float = 1.0
    """Largest gradient norm, per step."""

    def __post_init__(self) -> None:
        between("lr", self.lr, 0.0, 10.0)
        between("warmup", self.warmup, 0.0, 0.9)
        between("weight_decay", self.weight_decay, 0.0, 1.0)
        between("batch_size", self.batch_size, 2, 65536)
        between("label_smoothing", self.label_smoothing, 0.0, 0.9)
        between("mixup", self.mixup, 0.0, 10.0)
        between("cutmix", self.cutmix, 0.0, 10.0)
        between("augmentation", self.augmentation, 0.0, 3.0)
        between("class_weighting", self.class_weighting, 0.0, 2.0)
        between("layer_decay", self.layer_decay, 0.01, 1.0)
        between("thaw", self.thaw, 0.0, 1.0)
        between("ema", self.ema, 0.0, 0.99999)
        between("clip", self.clip, 0.01, 1000.0)
