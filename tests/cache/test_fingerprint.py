"""What work is named after: equal settings have one name, others another."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass

import pytest

from pipeline.cache.fingerprint import canonical, file_sha256, fingerprint, stream_sha256


@dataclass(frozen=True)
class Grid:
    size: int
    names: tuple[str, ...] = ()


def test_order_of_keys_and_kind_of_sequence_do_not_matter():
    assert (
        canonical({"b": (1, 2), "a": None}) == canonical({"a": None, "b": [1, 2]}) == b'{"a":null,"b":[1,2]}'
    )


def test_every_value_matters():
    objects = [1, 1.0, "1", True, None, [1], {"a": 1}, {"a": [1]}, [[1]], 0.1, 0.1 + 1e-16, "é", "e"]
    assert (
        len({fingerprint(item) for item in objects})
        == len({canonical(item) for item in objects})
        == len(objects)
    )
    assert fingerprint(0.1) == fingerprint(0.1 + 1e-18)


def test_floats_are_written_to_read_back_equal():
    assert canonical([0.1, 1e-7, 1 / 3]) == b"[0.1,1e-07,0.3333333333333333]"


def test_a_dataclass_counts_as_its_fields():
    assert canonical(Grid(96, ("x",))) == canonical({"size": 96, "names": ["x"]})


def test_fingerprints_of_stored_caches_stay_what_they_were():
    value = {"grid": Grid(192), "pictures": ["é"], "alpha": 0.1}
    assert canonical(value) == b'{"alpha":0.1,"grid":{"names":[],"size":192},"pictures":["\\u00e9"]}'
    assert fingerprint(value) == hashlib.sha256(canonical(value)).hexdigest()[:16]


@pytest.mark.parametrize("bad", [{1: 2}, {1, 2}, b"x", object(), [{"a": {2: 3}}], Grid])
def test_what_has_no_canonical_form_is_refused(bad):
    with pytest.raises(TypeError):
        canonical(bad)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_numbers_are_refused(bad):
    with pytest.raises(ValueError):
        canonical({"x": bad})


def test_files_and_streams_hash_alike(tmp_path):
    data = bytes(range(256)) * 9000  # more than one chunk
    (tmp_path / "f").write_bytes(data)
    assert file_sha256(tmp_path / "f") == stream_sha256(io.BytesIO(data)) == hashlib.sha256(data).hexdigest()
