"""Which engines may be compared: those that differ in nothing but their weights and the kernels that these allow."""

from collections.abc import Mapping, Sequence

from masksparse_deploy.core.artifacts.engines import EngineArtifact
from masksparse_deploy.core.artifacts.timing import EngineRole
from masksparse_deploy.core.errors import ArtifactError

__all__ = ["SPARSE_TACTICS", "check_twins", "has_sparse_tactics", "no_twins", "same_arithmetic"]

# The build option that backends with sparse kernels record.
SPARSE_TACTICS = "sparse_tactics"
# Options, versions and device that must agree: with another of these, more than the weights would decide the ratio.
_COMPARED = ("backend", "precision", "options", "versions", "device", "exposed")


def has_sparse_tactics(engine: EngineArtifact) -> bool:
    """Whether the engine's backend can allow and forbid sparse kernels."""
    return SPARSE_TACTICS in engine.options


def check_twins(builds: Mapping[EngineRole, Sequence[EngineArtifact]]) -> None:
    """Refuse engines that differ in more than their weights, and "forbidden" ones that allow sparse tactics.

    Raises:
        ArtifactError: says in what they differ.
    """
    reference = builds["dense"][0]
    for role, engines in builds.items():
        for engine in engines:
            for field in _COMPARED:
                expected, found = getattr(reference, field), getattr(engine, field)
                if field == "options" and role == "forbidden":
                    expected = {**expected, SPARSE_TACTICS: False}
                if expected != found:
                    raise no_twins(field, expected, found, role)
    made_from: dict[EngineRole, EngineRole] = {"dense": "dense", "sparse": "sparse", "forbidden": "sparse"}
    for role, source in made_from.items():
        for engine in builds.get(role, ()):
            expected = builds[source][0].source_sha256
            if engine.source_sha256 != expected:
                raise ArtifactError(
                    f"a build of the engine {role!r} was made from the ONNX file {engine.source_sha256}, and not from "
                    f"{expected}, as the {source} one: build all of them from the files of one bake"
                )


def same_arithmetic(dense: Sequence[EngineArtifact], sparse: Sequence[EngineArtifact]) -> bool:
    """Whether all engines run the same layers by the same kernels, and are known to run no sparse one."""
    if any(engine.own_operators for engine in sparse):
        return False
    kernels = {tuple((layer.name, layer.tactic) for layer in engine.layers) for engine in (*dense, *sparse)}
    # a runtime that tells of no layers tells nothing of its kernels
    return (
        len(kernels) == 1 and kernels != {()} and all(layer.is_sparse is False for engine in sparse for layer in engine.layers)
    )


def no_twins(what: str, dense: object, other: object, name: str) -> ArtifactError:
    """Two engines differ in what must be the same in both."""
    return ArtifactError(
        f"the engines differ in {what}: dense has {dense}, {name} has {other}; their ratio would not tell what sparsity does: "
        "build both from the two files of one bake, with the same options on the same device"
    )
