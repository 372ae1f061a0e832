"""The seal of a certificate: any change after it was made is found when it is read."""

import json
from pathlib import Path
from typing import Any

import pytest

from masksparse_deploy.core.artifacts.certificate import END_TO_END, HYBRID, LAYERWISE, Certificate, Claim, LayerBound
from masksparse_deploy.core.errors import ArtifactError
from masksparse_deploy.core.files import canonical_json, sha256_bytes


def make_certificate() -> Certificate:
    claim = Claim(
        name=HYBRID,
        statement="It is so.",
        bound=0.1 + 0.2,
        unit="output l2",
        method="made for a test",
        assumptions=("None.",),
        status="useful",
        detail="Ä word.",
        measured=1e-300,
        tightness=None,
        certified_count=3,
        sample_count=4,
    )
    layer = LayerBound(
        layer="conv",
        node="conv",
        initializer="conv.weight",
        removed_norm=1.5,
        difference_norm=2.0,
        dense_norm=3.0,
        sparse_norm=2.5,
        bias_difference=0.0,
        output_positions=49,
        method="grid",
    )
    return Certificate.sealed(
        dense_sha256="a" * 64,
        sparse_sha256="b" * 64,
        data_sha256="c" * 64,
        grid=32,
        layers=(layer,),
        claims=(claim,),
        smallest=HYBRID,
        unsupported=("Softmax",),
    )


def test_a_certificate_survives_the_disk(tmp_path: Path) -> None:
    certificate = make_certificate()
    certificate.write(tmp_path / "certificate.json")
    assert Certificate.read(tmp_path / "certificate.json") == certificate


def test_the_seal_is_that_of_the_canonical_json_without_it(tmp_path: Path) -> None:
    make_certificate().write(tmp_path / "certificate.json")
    content = json.loads((tmp_path / "certificate.json").read_bytes())
    seal = content.pop("seal_sha256")
    assert (content["kind"], content["schema_version"]) == ("certificate", 2)
    assert seal == sha256_bytes(canonical_json(content))


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every number, text and null in a JSON value."""
    if isinstance(value, dict):
        return [leaf for key, inner in value.items() for leaf in leaves(inner, (*path, key))]
    if isinstance(value, list):
        return [leaf for index, inner in enumerate(value) for leaf in leaves(inner, (*path, index))]
    return [path]


def changed(value: Any) -> Any:
    """Another value of the same type."""
    if value is None:
        return 1.0
    return value + "0" if isinstance(value, str) else value * 1.5 if isinstance(value, float) and value else value + 1


@pytest.mark.parametrize("path", leaves(json.loads(make_certificate().to_bytes())), ids=str)
def test_a_change_of_any_field_is_found(tmp_path: Path, path: tuple[Any, ...]) -> None:
    content = json.loads(make_certificate().to_bytes())
    holder = content
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = changed(holder[path[-1]])
    (tmp_path / "certificate.json").write_bytes(canonical_json(content))
    with pytest.raises(ArtifactError) as caught:
        Certificate.read(tmp_path / "certificate.json")
    if path[0] not in ("kind", "schema_version") and path[-1] != "status":
        assert "was changed after it was made" in str(caught.value)
        assert "run 'masksparse certify' again" in str(caught.value)


def test_an_entry_that_is_gone_is_found(tmp_path: Path) -> None:
    content = json.loads(make_certificate().to_bytes())
    content["unsupported"] = []
    (tmp_path / "certificate.json").write_bytes(canonical_json(content))
    with pytest.raises(ArtifactError, match=r"its seal is '[0-9a-f]{64}', that of its content [0-9a-f]{64}; run"):
        Certificate.read(tmp_path / "certificate.json")


def test_the_first_format_is_refused_with_what_to_do(tmp_path: Path) -> None:
    content = json.loads(make_certificate().to_bytes()) | {"schema_version": 1}
    (tmp_path / "certificate.json").write_bytes(canonical_json(content))
    with pytest.raises(ArtifactError, match="schema version 1; this version reads 2: run its stage again"):
        Certificate.read(tmp_path / "certificate.json")


def test_claims_have_one_name_each() -> None:
    assert len({LAYERWISE, *END_TO_END}) == 5
