"""The drawn faces: named as such, repeatable, and ready for ingest."""

import numpy as np
import pytest

from fer_scale.errors import InputError
from fer_scale.faces.images import decode
from fer_scale.faces.sample import CLASSES, draw, face, main
from fer_scale.verbs.ingest import ingest


def test_the_command_writes_class_folders_that_ingest_takes_as_they_are(tmp_path, capsys):
    assert main([str(tmp_path / "faces"), "--count", "48", "--seed", "3"]) == 0
    assert "48 drawn faces" in capsys.readouterr().out
    assert "they show nobody" in (tmp_path / "faces/README.txt").read_text()
    files = sorted((tmp_path / "faces").rglob("*.png"))
    assert len(files) == 48
    assert all(path.name.startswith("synthetic_") for path in files)
    assert {decode(path.read_bytes()).size for path in files} == {(48, 48)}
    result = ingest(tmp_path / "faces", tmp_path / "store", quiet=True)
    assert (result["read"], result["kept"]) == (48, 48)


def test_a_seed_gives_the_same_faces_and_another_seed_others(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        draw(tmp_path / name, 4, seed, size=32)
    a, b, c = ([path.read_bytes() for path in sorted((tmp_path / name).rglob("*.png"))] for name in "abc")
    assert a == b
    assert not set(a) & set(c)


def test_faces_vary_and_expressions_differ_on_average():
    means = []
    for label in CLASSES:
        faces = [np.asarray(face(label, np.random.default_rng([7, n]), 48), dtype=float) for n in range(12)]
        assert min(np.abs(faces[0] - other).mean() for other in faces[1:]) > 5
        means.append(np.mean(faces, axis=0))
    for at, mean in enumerate(means):
        for other in means[at + 1 :]:
            assert np.abs(mean - other).max() > 4


def test_wrong_wishes_are_refused(tmp_path, capsys):
    with pytest.raises(InputError):
        draw(tmp_path / "x", 2)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine").write_text("mine")
    assert main([str(tmp_path / "full")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
