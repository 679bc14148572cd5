"""The model bundle: a folder of safetensors, ONNX and JSON that says what it is, and is safe to open.

config.json  weights.safetensors  model.onnx  metrics.json  curve.parquet  README.md  checksums.json
calibration.parquet (where the store has a calib split)
"""

import hashlib
import json
import warnings
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fer_scale import storage
from fer_scale.errors import InputError
from fer_scale.faces.images import PREPROCESSING_VERSION, Preprocessing

# What only infers with ONNX Runtime reads bundles without PyTorch and timm: seconds and 600 MiB a process.
if TYPE_CHECKING:
    import pandas as pd

    from fer_scale.families.network import Network
    from fer_scale.learning.configuration import Configuration

SCHEMA_VERSION = 1
FILES = ("config.json", "weights.safetensors", "model.onnx", "metrics.json", "curve.parquet", "README.md")
CHECKSUMS = "checksums.json"
CALIBRATION = "calibration.parquet"
"""What the network answered on val and calib: split, id, label (the truth), prob_<class>."""


@dataclass(frozen=True)
class Bundle:
    """A checked bundle on local disk."""

    directory: Path
    config: dict[str, Any]
    classes: list[str]
    preprocessing: Preprocessing
    temperature: float
    model_id: str
    metrics: dict[str, Any] = field(repr=False)

    @property
    def onnx(self) -> Path:
        """The network as ONNX: input ``images`` uint8 ``[N, C, S, S]``, output ``logits`` float32 ``[N, K]``."""
        return self.directory / "model.onnx"

    def configuration(self) -> "Configuration":
        """What made the model."""
        from fer_scale.learning.configuration import Configuration

        return Configuration.from_dict(self.config["configuration"])

    def network(self) -> "Network":
        """The network in PyTorch with its weights, in eval mode."""
        from safetensors.torch import load_file

        network = build(self.configuration(), len(self.classes), pretrained=False)
        network.load_state_dict(load_file(self.directory / "weights.safetensors"))
        return network.eval()

    def calibration(self) -> "pd.DataFrame":
        """The rows of calibration.parquet.

        Raises:
            InputError: the bundle has none.
        """
        import pandas as pd

        path = self.directory / CALIBRATION
        if not path.exists():
            raise InputError(
                f"a bundle without {CALIBRATION}",
                "one that was trained on a store with a calib split",
                "train again on a store of fer-scale ingest",
            )
        return pd.read_parquet(path)

    @classmethod
    def load(cls, path: str | Path) -> "Bundle":
        """Open a bundle, local or on S3, and check it. Reads JSON, safetensors and ONNX alone: nothing is unpickled.

        Raises:
            InputError: nothing there, a file missing or changed since it was written, or another schema version.
        """
        path = str(path)
        if not storage.exists(storage.join(path, "config.json")):
            raise InputError(path, "a model bundle (a folder with config.json)", "make one with: fer-scale train")
        # beside a bundle that is being replaced lie its successor's checkpoints
        directory = storage.fetch_dir(path, only={*FILES, CALIBRATION, CHECKSUMS})
        config = _json(directory / "config.json", path)
        found = config.get("schema_version")
        if found != SCHEMA_VERSION:
            raise InputError(
                f"bundle {path} of schema version {found}",
                f"version {SCHEMA_VERSION}",
                "train it again, or use the fer-scale that made it",
            )
        _check_sums(directory, path)
        try:
            return cls(
                directory=directory,
                config=config,
                classes=[str(name) for name in config["classes"]],
                preprocessing=Preprocessing(**config["preprocessing"]),
                temperature=float(config["temperature"]),
                model_id=str(config["model_id"]),
                metrics=_json(directory / "metrics.json", path),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"bundle {path} ({error})", "a complete config.json", "train it again") from None


def build(configuration: "Configuration", num_classes: int, pretrained: bool = True) -> "Network":
    """The network of a configuration; without pretrained weights where a state is loaded into it right after."""
    from fer_scale.families import FAMILIES

    family = FAMILIES[configuration.family]
    network = configuration.network
    if not pretrained and hasattr(network, "weights"):
        network = replace(network, weights="none")
    built = family.build(network, configuration.preprocessing, num_classes)
    built.mirrored = configuration.test_time_flip
    return built


def write(
    directory: Path,
    network: "Network",
    configuration: "Configuration",
    *,
    classes: list[str],
    temperature: float,
    facts: dict[str, Any],
    metrics: dict[str, Any],
    curve: "pd.DataFrame",
    card: str,
    calibration: "pd.DataFrame | None" = None,
) -> str:
    """Write a bundle into an empty local directory (the caller publishes it); gives its model_id.

    Args:
        facts: data fingerprint, versions, weights used, seed and commit: told, but no part of the model_id.
        card: the model card, Markdown; ``{model_id}`` in it is filled in.
        calibration: what the network answers on val and calib; None where there is no calib.
    """
    from safetensors.torch import save

    network = network.cpu().eval()
    state = {name: value.contiguous() for name, value in network.state_dict().items()}
    (directory / "weights.safetensors").write_bytes(save(state))  # a full disk is then an OSError
    export_onnx(network, configuration.preprocessing, directory / "model.onnx")
    config: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "family": configuration.family,
        "configuration": configuration.to_dict(),
        "classes": classes,
        "preprocessing": asdict(configuration.preprocessing),
        "preprocessing_version": PREPROCESSING_VERSION,
        "temperature": temperature,
    }
    config["model_id"] = _model_id(config, directory)
    config.update(facts)
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (directory / "metrics.json").write_text(json.dumps({**metrics, "model_id": config["model_id"]}, indent=2) + "\n")
    curve.to_parquet(directory / "curve.parquet", index=False)
    (directory / "README.md").write_text(card.replace("{model_id}", config["model_id"]))
    names = list(FILES)
    if calibration is not None:
        calibration.to_parquet(directory / CALIBRATION, index=False)
        names.append(CALIBRATION)
    sums = {name: _sha256(directory / name) for name in names}
    (directory / CHECKSUMS).write_text(json.dumps(sums, indent=2) + "\n")
    return str(config["model_id"])


def export_onnx(network: "Network", preprocessing: Preprocessing, path: Path) -> None:
    """One self-contained ONNX file from uint8 images to logits, with a free batch size."""
    import torch

    example = torch.zeros((2, preprocessing.channels, preprocessing.size, preprocessing.size), dtype=torch.uint8)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter warns about its own internals
        torch.onnx.export(
            network.eval(),
            (example,),
            str(path),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes={"x": {0: torch.export.Dim("batch")}},
            external_data=False,
            dynamo=True,
            verbose=False,
        )


def _model_id(config: dict[str, Any], directory: Path) -> str:
    """A hash of what decides the answers: network, classes, preprocessing, temperature and the weights."""
    decides = {
        **{key: config["configuration"][key] for key in ("network", "test_time_flip")},
        **{key: config[key] for key in ("family", "classes", "preprocessing", "preprocessing_version", "temperature")},
    }
    digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode())
    digest.update((directory / "weights.safetensors").read_bytes())
    return digest.hexdigest()[:16]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _json(path: Path, bundle: str) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path.name} of {bundle} ({error})", "a JSON file", "copy the whole bundle again") from None
    if not isinstance(values, dict):
        raise InputError(f"{path.name} of {bundle}", "a JSON object", "copy the whole bundle again")
    return values


def _check_sums(directory: Path, bundle: str) -> None:
    sums = _json(directory / CHECKSUMS, bundle)
    for name in (*FILES, *([CALIBRATION] if CALIBRATION in sums else [])):
        if not (directory / name).exists():
            raise InputError(
                f"bundle {bundle} without {name}",
                f"the files {', '.join(FILES)}",
                "copy the whole bundle again",
            )
        if sums.get(name) != _sha256(directory / name):
            raise InputError(
                f"{name} of {bundle} with another checksum than checksums.json says",
                "the file as it was written",
                "copy the whole bundle again",
            )
