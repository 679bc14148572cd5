"""A bundle says when it is not as it was written, and its model_id changes with whatever decides the answers."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from fer_scale import storage
from fer_scale.bundle import CALIBRATION, FILES, Bundle, _model_id, write
from fer_scale.errors import InputError
from tests.bundles import calibration, write_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundle") / "b", calibration=calibration())


@pytest.mark.parametrize("name", [*FILES, CALIBRATION, "checksums.json"])
def test_a_file_that_changed_or_went_is_named(name: str, bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    assert Bundle.load(copy).model_id == Bundle.load(bundle).model_id
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(InputError, match=f"{re.escape(name)}|another checksum"):
        Bundle.load(copy)
    (copy / name).unlink()
    with pytest.raises(InputError, match=re.escape(name)):
        Bundle.load(copy)


def test_on_s3_nothing_but_the_bundle_is_fetched(bundle: Path, s3: str) -> None:
    with storage.publishing(f"{s3}/b", last="config.json") as staging:
        shutil.copytree(bundle, staging, dirs_exist_ok=True)
    first = Bundle.load(f"{s3}/b")
    # its successor is being fitted
    storage.write_bytes(f"{s3}/b/fit/step-000000002.safetensors", b"much")
    storage.write_bytes(f"{s3}/b/lease.json", b"{}")
    again = Bundle.load(f"{s3}/b")
    assert again.directory == first.directory, "the same copy is as good as before"
    assert {path.name for path in again.directory.iterdir()} == {path.name for path in bundle.iterdir()}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_said_in_one_line(bundle: Path, tmp_path: Path) -> None:
    whole = Bundle.load(bundle)
    given: dict[str, Any] = {"facts": {}, "metrics": {}, "card": "", "temperature": 1.0, "classes": whole.classes}
    with pytest.raises(InputError, match="no space"), storage.publishing(tmp_path / "out") as staging:
        (staging / "weights.safetensors").symlink_to("/dev/full")
        write(staging, whole.network(), whole.configuration(), curve=pd.DataFrame({"epoch": [1]}), **given)
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_of_another_schema_is_refused(bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "schema_version": 2}))
    with pytest.raises(InputError, match="schema version 2"):
        Bundle.load(copy)


def test_what_decides_the_answers_is_in_the_model_id_and_nothing_else(bundle: Path, tmp_path: Path) -> None:
    config = json.loads((bundle / "config.json").read_text())
    assert _model_id(config, bundle) == config["model_id"]
    configuration, preprocessing = config["configuration"], config["preprocessing"]
    decides: list[dict[str, Any]] = [
        {"temperature": config["temperature"] + 0.1},
        {"classes": config["classes"][::-1]},
        {"preprocessing": {**preprocessing, "size": preprocessing["size"] + 1}},
        {"preprocessing_version": config["preprocessing_version"] + 1},
        {"configuration": {**configuration, "test_time_flip": True}},
        {"configuration": {**configuration, "network": {**configuration["network"], "width": 0.5}}},
    ]
    told: list[dict[str, Any]] = [
        {"seed": 7, "versions": {}, "data_fingerprint": "another"},
        {"configuration": {**configuration, "recipe": {**configuration["recipe"], "lr": 1.0}}},
    ]
    others = [_model_id({**config, **change}, bundle) for change in decides]
    assert len({config["model_id"], *others}) == 1 + len(decides)
    assert {_model_id({**config, **change}, bundle) for change in told} == {config["model_id"]}
    weights = load_file(bundle / "weights.safetensors")
    name = next(name for name, value in weights.items() if value.dtype == torch.float32)
    save_file({**weights, name: weights[name] + 1e-3}, tmp_path / "weights.safetensors")
    assert _model_id(config, tmp_path) != config["model_id"]
