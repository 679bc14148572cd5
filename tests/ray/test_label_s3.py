"""`label` from and to S3, on a Ray whose processes have the settings of that S3 server."""

import importlib.util
from pathlib import Path

import numpy as np

from fer_scale import storage
from fer_scale.cluster import connected
from fer_scale.faces.images import encode_png
from fer_scale.verbs.label import label
from tests import photographs
from tests.bundles import write_bundle


def noise(seed: int) -> bytes:
    return encode_png(np.random.default_rng(seed).integers(0, 256, (48, 48), dtype=np.uint8))


def test_from_and_to_s3(tmp_path: Path, s3: str) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    for seed in range(9):
        storage.write_bytes(f"{s3}/faces/{seed % 2}/{seed}.png", noise(seed))
    storage.write_bytes(f"{s3}/faces/bad.png", b"x")
    for file in bundle.iterdir():
        storage.write_bytes(f"{s3}/bundle/{file.name}", file.read_bytes())
    with connected(cpus=1):
        summary = label(f"{s3}/bundle", f"{s3}/faces", f"{s3}/out")
        assert (summary["inputs"], summary["labelled"], summary["errors"]) == (10, 9, 1)
        assert label(f"{s3}/bundle", f"{s3}/faces", f"{s3}/out")["new"] == 0
        if importlib.util.find_spec("mtcnn") is not None:
            for name, image in (("group", photographs.group()), ("none", photographs.scenery())):
                storage.write_bytes(f"{s3}/photographs/{name}.jpg", photographs.encoded(image, "JPEG"))
            found = label(f"{s3}/bundle", f"{s3}/photographs", f"{s3}/boxes", faces="detect")
            assert [found[name] for name in ("inputs", "labelled", "no_face", "faces")] == [2, 1, 1, 3]
            assert label(f"{s3}/bundle", f"{s3}/photographs", f"{s3}/boxes", faces="detect")["new"] == 0
    assert storage.exists(f"{s3}/out/report.html")
    assert not storage.exists(f"{s3}/out/lease.json")
