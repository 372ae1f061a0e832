"""Every member of TensorRT's Python bindings that the code touches exists in each version it claims to support."""

import ast
import json
from pathlib import Path
from typing import Any, get_args

import pytest

from masksparse_deploy.core.config import EngineOptions
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
    "severities": "ILogger",
    "timing_cache": "ITimingCache",
    "refitter": "Refitter",
    "parser_error": "ParserError",
    "parser_refitter": "OnnxParserRefitter",
}
# Classes that came later; what the code does without them is up to its author.
LATER_CLASSES = {"OnnxParserRefitter"}
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


def optional_members(source: str) -> set[str]:
    """Names that the code asks for without relying on them: given to `optional`, or flags in capitals."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isupper():
            found.add(node.value)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "optional":
            found |= {argument.value for argument in node.args[1:] if isinstance(argument, ast.Constant)}
    return found


def names_module(source: str) -> bool:
    """Whether the code has a variable for the module."""
    return any(
        isinstance(node, ast.Attribute) and last_name(node.value) in ("trt", "_trt") for node in ast.walk(ast.parse(source))
    )


def read_api(version: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((API / f"tensorrt-{version}.json").read_text(encoding="utf-8"))
    return content


def exists(api: dict[str, Any], owner: str, member: str) -> bool:
    if owner == "":
        return member in api["names"] or member in api["classes"] or member in api["enums"]
    if owner in LATER_CLASSES and owner not in api["classes"]:
        return True
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
        ("MemoryPoolType", "WORKSPACE"),
        ("IBuilderConfig", "set_timing_cache"),
        ("ITimingCache", "serialize"),
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
@pytest.mark.parametrize("version", VERSIONS)
def test_what_polygraphy_sets_for_us_exists(version: str) -> None:
    api = read_api(version)
    assert {"SPARSE_WEIGHTS", "TF32", "REFIT", "VERSION_COMPATIBLE"} <= set(api["enums"]["BuilderFlag"])
    members = ("builder_optimization_level", "hardware_compatibility_level", "profiling_verbosity", "set_tactic_sources")
    assert {*members, "set_memory_pool_limit", "add_optimization_profile"} <= set(api["classes"]["IBuilderConfig"])


@needs_data
def test_optional_members_are_spelled_as_in_some_version() -> None:
    known: set[str] = set()
    for version in VERSIONS:
        api = read_api(version)
        known |= {name for part in ("enums", "classes") for members in api[part].values() for name in members}
        known |= set(api["enums"]) | set(api["classes"])
    found = set().union(*(optional_members(path.read_text(encoding="utf-8")) for path in FILES))
    assert {"STRONGLY_TYPED", "EXPLICIT_BATCH", "FP16", "IProgressMonitor", "HardwareCompatibilityLevel"} <= found <= known
    assert not optional_members("optional(trt, 'IProgressMonitorr')") <= known


@needs_data
@pytest.mark.parametrize(("level", "since"), [("AMPERE_PLUS", 0), ("SAME_COMPUTE_CAPABILITY", 1)])
def test_levels_of_compatibility_are_those_of_the_options(level: str, since: int) -> None:
    options = get_args(EngineOptions.model_fields["hardware_compatibility"].annotation)
    assert level in {option.replace("-", "_").upper() for option in options}
    known = [level in read_api(version)["enums"]["HardwareCompatibilityLevel"] for version in VERSIONS]
    assert known == [index >= since for index in range(len(VERSIONS))]


def test_no_other_file_touches_tensorrt() -> None:
    # the parser of the pre-flight is that of tensorrt_rtx, in one version
    others = {path for path in ENGINE.rglob("*.py") if not path.stem.startswith("preflight")} - set(FILES)
    assert {path.stem for path in others if names_module(path.read_text(encoding="utf-8"))} == set()
    assert names_module("def f(trt): return trt.Builder")
