"""Reading certificates strictly: anything but a whole, well-typed certificate is damaged, and says what is wrong."""

import json
from pathlib import Path
from typing import Any

import pytest

from masksparse_deploy.checker.document import canonical_json, read_certificate, seal_of
from masksparse_deploy.checker.errors import DamagedError, UsageError
from masksparse_deploy.core.artifacts.certificate import Certificate
from masksparse_deploy.core.files import canonical_json as other_canonical_json
from tests.checker.cases import Case


def test_the_seal_is_that_of_the_certify_stage(case: Case) -> None:
    certificate = Certificate.read(case.certificate)
    record = read_certificate(case.certificate)
    assert record.seal_sha256 == record.sealed_sha256 == certificate.expected_seal() == seal_of(case.content)
    assert record.layers[0].node == certificate.layers[0].node
    content = {"ü": [1.5, 1e-300, None, True], "a": {}}
    assert canonical_json(content) == other_canonical_json(content)


def changed(**values: Any) -> Any:
    return lambda content: json.dumps({**content, **values})


def in_layer(**values: Any) -> Any:
    return lambda content: json.dumps({**content, "layers": [{**content["layers"][0], **values}]})


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda content: "{", "is not valid JSON"),
        (lambda content: "[1]", "is not a masksparse certificate file; check the path"),
        (lambda content: json.dumps({"kind": "bake report"}), "is not a masksparse certificate file; check the path"),
        (changed(schema_version=1), "has schema version 1; this checker reads 2: run 'masksparse certify' again"),
        (changed(schema_version=True), "has schema version True"),
        (changed(note=1), "the certificate has the unknown note; the file is damaged: run 'masksparse certify' again"),
        (lambda content: json.dumps({key: content[key] for key in content if key != "grid"}), "the certificate lacks grid"),
        (changed(grid=7.0), "the certificate: grid is 7.0, not int"),
        (changed(grid=True), "the certificate: grid is True, not int"),
        (changed(unsupported="Relu"), "the certificate: unsupported is not a list"),
        (changed(layers=[1]), "the certificate: layers[0] is not an object"),
        (in_layer(dense_norm="1"), "layers[0]: dense_norm is '1', not float"),
        (in_layer(dense_norm=float("nan")), "NaN is no finite number"),
        (in_layer(dense_norm=float("inf")), "Infinity is no finite number"),
        (in_layer(dense_norm=10**400), "layers[0]: dense_norm is too large for a number of 64 bits"),
        (in_layer(note=""), "the certificate: layers[0] has the unknown note"),
        (lambda content: json.dumps(content).replace('"grid": 7', '"grid": 7, "grid": 8'), "a key occurs twice"),
        (lambda content: json.dumps(content).replace('"grid": 7', '"grid": 7e999'), "7e999 is no finite number"),
    ],
)
def test_what_is_damaged_is_said(case: Case, tmp_path: Path, write: Any, message: str) -> None:
    path = tmp_path / "certificate.json"
    path.write_text(write(case.content))
    with pytest.raises(DamagedError) as caught:
        read_certificate(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.json does not exist; give the file that 'masksparse certify' wrote"):
        read_certificate(tmp_path / "none.json")
