"""Every member of TensorRT's Python bindings that the code touches exists in each version it claims to support."""

import ast
import json
from pathlib import Path
from typing import Any

import pytest

from tests.requirements import REPOSITORY, SHARED_DATA

ENGINE = REPOSITORY / "masksparse_deploy" / "engine"
FILES = sorted(ENGINE.glob("tensorrt_*.py"))
API = SHARED_DATA / "tensorrt_api"
VERSIONS = ("8.6.0", "10.16.1", "11.4.0")

# What the variables of these files hold.
CLASS_OF = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "config": "IBuilderConfig",
    "shape_profile": "IOptimizationProfile",
    "inspector": "EngineInspector",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "_engine": "ICudaEngine",
    "_context": "IExecutionContext",
    "context": "IExecutionContext",
    "layer": "ILayer",
    "tensor": "ITensor",
}
CLASS_OF_RESULT = {"get_error": "ParserError"}

needs_data = pytest.mark.skipif(not API.is_dir(), reason="the lists of TensorRT's members (../shared/data) are not here")


def last_name(node: ast.expr) -> str:
    """`x` for x and for self.x."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
        return node.attr
    return ""


def touched(source: str) -> set[tuple[str, str]]:
    """(owner, member) for each member of TensorRT used in `source`; the owner is a class, an enumeration or "" (the module)."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Attribute):
            continue
        owner = node.value
        if last_name(owner) in ("trt", "_trt"):
            found.add(("", node.attr))
        elif isinstance(owner, ast.Attribute) and last_name(owner.value) in ("trt", "_trt"):
            found.add((owner.attr, node.attr))
        elif last_name(owner) in CLASS_OF:
            found.add((CLASS_OF[last_name(owner)], node.attr))
        elif isinstance(owner, ast.Call) and isinstance(owner.func, ast.Attribute) and owner.func.attr in CLASS_OF_RESULT:
            found.add((CLASS_OF_RESULT[owner.func.attr], node.attr))
    return {(owner, member) for owner, member in found if not member.startswith("__")}


def optional_flags(source: str) -> set[str]:
    """Names of flags that the code asks for without relying on them."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return {node.value for node in calls if node.value.isupper()}


def read_api(version: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((API / f"tensorrt-{version}.json").read_text(encoding="utf-8"))
    return content


def exists(api: dict[str, Any], owner: str, member: str) -> bool:
    if owner == "":
        return member in api["names"] or member in api["classes"] or member in api["enums"]
    return member in api["enums"].get(owner, ()) or member in api["classes"].get(owner, ())


def missing(source: str, version: str) -> set[tuple[str, str]]:
    api = read_api(version)
    return {use for use in touched(source) if not exists(api, *use)}


@needs_data
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_member_exists(path: Path, version: str) -> None:
    assert missing(path.read_text(encoding="utf-8"), version) == set()


def test_the_members_are_found() -> None:
    uses = set().union(*(touched(path.read_text(encoding="utf-8")) for path in FILES))
    for use in [
        ("", "Builder"),
        ("BuilderFlag", "SPARSE_WEIGHTS"),
        ("IBuilderConfig", "set_memory_pool_limit"),
        ("IExecutionContext", "execute_async_v3"),
        ("ICudaEngine", "create_engine_inspector"),
        ("ParserError", "desc"),
        ("Runtime", "deserialize_cuda_engine"),
    ]:
        assert use in uses


@needs_data
@pytest.mark.parametrize(
    ("source", "wrong"),
    [
        ("config.set_flagg(1)", ("IBuilderConfig", "set_flagg")),
        ("trt.BuilderFlag.SPARSE_WEIGHT", ("BuilderFlag", "SPARSE_WEIGHT")),
        ("trt.BuilderX(logger)", ("", "BuilderX")),
        ("self._context.execute_v9()", ("IExecutionContext", "execute_v9")),
        ("parser.get_error(0).description()", ("ParserError", "description")),
    ],
)
def test_a_wrong_member_is_caught(source: str, wrong: tuple[str, str]) -> None:
    assert all(missing(source, version) == {wrong} for version in VERSIONS)


@needs_data
def test_what_one_version_lacks_is_caught() -> None:
    source = "config.int8_calibrator; trt.BuilderFlag.FP16"
    assert [bool(missing(source, version)) for version in VERSIONS] == [False, False, True]


@needs_data
def test_optional_flags_are_spelled_as_in_some_version() -> None:
    known: set[str] = set()
    for version in VERSIONS:
        enums = read_api(version)["enums"]
        known |= set(enums["BuilderFlag"]) | set(enums["NetworkDefinitionCreationFlag"])
    source = (ENGINE / "tensorrt_build.py").read_text(encoding="utf-8")
    assert optional_flags(source) == {"STRONGLY_TYPED", "EXPLICIT_BATCH", "FP16", "INT8"}
    assert optional_flags(source) <= known
    assert not optional_flags("f('STRONGLY_TYPD')") <= known
