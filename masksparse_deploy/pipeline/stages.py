"""The stages of the chain: what each depends on, what it writes, and how it is run."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from masksparse_deploy.core.config import Options
from masksparse_deploy.core.errors import MachineError
from masksparse_deploy.core.files import sha256_file
from masksparse_deploy.core.progress import Progress
from masksparse_deploy.pipeline.baking import bake_model
from masksparse_deploy.pipeline.explaining import WHY_NOT_SPARSE, explain_files
from masksparse_deploy.pipeline.job import Job, source_digest
from masksparse_deploy.pipeline.reporting import FORECAST, REPORTED, SELECTION, SWEEP, report_folder
from masksparse_deploy.pipeline.rewriting import REWRITE, REWRITTEN, built_from, rewrite_job, rewrite_outputs

__all__ = ["STAGES", "Stage"]

# What the bake stage writes besides, in a reduced precision: the networks before their conversion.
_UNCONVERTED = ("dense.fp32.onnx", "sparse.fp32.onnx")


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        name: as on the command line.
        outputs: the files it writes into the output folder, given what the job is.
        inputs: everything that its outputs depend on, as JSON; digests stand for files.
        run: does the work.
        check: raises where this machine lacks what the stage needs; asked before the first stage runs.
    """

    name: str
    outputs: Callable[[Job], tuple[str, ...]]
    inputs: Callable[[Job], dict[str, Any]]
    run: Callable[[Job, Progress], None]
    check: Callable[[Job], None] = lambda job: None


def _plain(options: Options) -> dict[str, Any]:
    return options.model_dump(mode="json")


def _learn_inputs(job: Job) -> dict[str, Any]:
    data, assignment = job.config.data, job.config.mask.assignment
    return {
        "model": job.model_digests(),
        "factory": job.config.model.factory,
        "data": _plain(data),
        "train": source_digest(data.train, job.folder),
        "test": source_digest(data.test, job.folder),
        "validation": source_digest(data.validation, job.folder) if data.validation is not None else "",
        "mask": _plain(job.config.mask),
        # Only the recipe asks for the gate.
        "gate": job.config.gates.accuracy_drop_points if job.config.mask.method == "auto" else None,
        "assignment": sha256_file(job.folder / assignment, "layer selection") if assignment is not None else "",
    }


def _learn(job: Job, progress: Progress) -> None:
    from masksparse_deploy.learn.run import learn

    config = job.config
    learn(config.model, config.data, config.mask, config.gates, folder=job.folder, out=job.out, progress=progress)


def _bake_inputs(job: Job) -> dict[str, Any]:
    return {
        "model": job.model_digests(),
        "factory": job.config.model.factory,
        "masks": job.digest("masks.safetensors"),
        "test": _test_inputs(job),
        "bake": _plain(job.config.bake),
        # FP32 needs no images to measure ranges on.
        "calibration": source_digest(job.config.data.train, job.folder) if job.config.bake.precision != "fp32" else "",
    }


def _bake_outputs(job: Job) -> tuple[str, ...]:
    names = ("dense.onnx", "sparse.onnx", "probe.safetensors", "bake.json")
    return names if job.config.bake.precision == "fp32" else (*names, *_UNCONVERTED)


def _bake(job: Job, progress: Progress) -> None:
    config = job.config
    bake_model(
        config.model,
        job.out / "masks.safetensors",
        config.bake,
        job.test,
        calibration=job.train if config.bake.precision != "fp32" else None,
        folder=job.folder,
        out=job.out,
        progress=progress,
    )


def _check_backend(job: Job) -> None:
    from masksparse_deploy.engine.select import choose_backend

    try:
        choose_backend(job.config.engine.backend)
    except MachineError as error:
        raise MachineError(f"{error}; nothing was run: to learn here and build on another machine, add --until bake") from error


def _backend_status(job: Job) -> dict[str, Any]:
    from masksparse_deploy.engine.select import choose_backend

    backend, _ = choose_backend(job.config.engine.backend)
    return backend.status().model_dump(mode="json")


def _rewrite_inputs(job: Job) -> dict[str, Any]:
    return {
        "sparse": job.digest("sparse.onnx"),
        "rewrite": _plain(job.config.rewrite),
        "engine": _plain(job.config.engine),
        "backend": _backend_status(job),
    }


def _build_inputs(job: Job) -> dict[str, Any]:
    return {
        "dense": job.digest("dense.onnx"),
        "sparse": job.digest(built_from(job.out)),
        "engine": _plain(job.config.engine),
        "backend": _backend_status(job),
    }


def _build(job: Job, progress: Progress) -> None:
    from masksparse_deploy.engine.select import choose_backend

    backend, _ = choose_backend(job.config.engine.backend)
    for name, source in (("dense", "dense.onnx"), ("sparse", built_from(job.out))):
        backend.build(job.out / source, job.out, job.engine, name=name, progress=progress)


def _build_outputs(job: Job) -> tuple[str, ...]:
    from masksparse_deploy.core.artifacts.engines import EngineArtifact

    names = []
    for name in ("dense.engine.json", "sparse.engine.json"):
        names += [name, EngineArtifact.read(job.out / name).plan]
    return tuple(names)


def _test_inputs(job: Job) -> dict[str, Any]:
    return {"source": source_digest(job.config.data.test, job.folder), "options": _plain(job.config.data)}


def _profile_inputs(job: Job) -> dict[str, Any]:
    return {
        "dense": job.digest("dense.engine.json"),
        "sparse": job.digest("sparse.engine.json"),
        "test": _test_inputs(job),
        "engine": _plain(job.config.engine),
        "profile": _plain(job.config.profile),
    }


def _profile(job: Job, progress: Progress) -> None:
    from masksparse_deploy.profiling.builds import BUILDS, provide_builds
    from masksparse_deploy.profiling.compare import profile_builds

    builds = provide_builds(
        job.out / "dense.engine.json",
        job.out / "sparse.engine.json",
        job.out / "dense.onnx",
        job.out / built_from(job.out),
        job.out / BUILDS,
        count=job.config.profile.builds,
        progress=progress,
    )
    report = profile_builds(builds, job.test.images, job.engine, job.config.profile, progress=progress)
    report.write(job.out / "profile.json")
    explained = explain_files(
        job.out / built_from(job.out),
        job.out / "sparse.engine.json",
        dense=job.out / "dense.engine.json",
        profile=job.out / "profile.json",
    )
    explained.write(job.out / WHY_NOT_SPARSE)


def _certify_inputs(job: Job) -> dict[str, Any]:
    return {
        "dense": job.digest("dense.onnx"),
        "sparse": job.digest("sparse.onnx"),
        "test": _test_inputs(job),
        "certify": _plain(job.config.certify),
    }


def _certify(job: Job, progress: Progress) -> None:
    from masksparse_deploy.pipeline.norms import write_certificate

    write_certificate(
        job.out / "dense.onnx",
        job.out / "sparse.onnx",
        job.test,
        job.config.certify,
        out=job.out / "certificate.json",
        remark=lambda text: progress(text, 0, 1),
        progress=progress,
    )


def _validate_inputs(job: Job) -> dict[str, Any]:
    engines, models = ["dense.engine.json", "sparse.engine.json"], ["dense.onnx", "sparse.onnx"]
    if job.config.bake.precision != "fp32":
        models += _UNCONVERTED
    if built_from(job.out) == REWRITTEN:
        models.append(REWRITTEN)
    # not rewrite.json: of what it says only the digest of that file is looked at, and its times are others in every run
    files = [*engines, *models, "certificate.json", "probe.safetensors", "bake.json"]
    if job.config.gates.latency_ratio is not None:  # only this gate reads the times, which are others in every run
        files.append("profile.json")
    return {
        "files": {name: job.digest(name) for name in files},
        "test": _test_inputs(job),
        "engine": _plain(job.config.engine),
        "gates": _plain(job.config.gates),
    }


def _validate(job: Job, progress: Progress) -> None:
    from masksparse_deploy.core.artifacts.baking import BakeReport
    from masksparse_deploy.core.artifacts.certificate import Certificate
    from masksparse_deploy.core.artifacts.rewriting import RewriteReport
    from masksparse_deploy.core.artifacts.timing import ProfileReport
    from masksparse_deploy.validate.run import validate

    report = validate(
        dense_engine=job.out / "dense.engine.json",
        sparse_engine=job.out / "sparse.engine.json",
        dense_onnx=job.out / "dense.onnx",
        sparse_onnx=job.out / "sparse.onnx",
        certificate=Certificate.read(job.out / "certificate.json"),
        probe=job.out / "probe.safetensors",
        baked=BakeReport.read(job.out / "bake.json"),
        unconverted=None if job.config.bake.precision == "fp32" else (job.out / _UNCONVERTED[0], job.out / _UNCONVERTED[1]),
        profile=ProfileReport.read(job.out / "profile.json"),
        rewrite=RewriteReport.read(job.out / REWRITE),
        rewritten_onnx=job.out / REWRITTEN if built_from(job.out) == REWRITTEN else None,
        samples=job.test,
        gates=job.config.gates,
        engine_options=job.engine,
        out=job.out,
        progress=progress,
    )
    report.write(job.out / "validation.json")


def _report_inputs(job: Job) -> dict[str, Any]:
    shown = (*REPORTED, REWRITE, *(name for name in (FORECAST, SELECTION, SWEEP) if (job.out / name).is_file()))
    return {"files": {name: job.digest(name) for name in shown}, "config": job.config_text}


def _report(job: Job, progress: Progress) -> None:
    progress("report", 0, 1)
    report_folder(job.out, command=job.command, config_text=job.config_text)


def _fixed(*names: str) -> Callable[[Job], tuple[str, ...]]:
    return lambda job: names


STAGES = (
    Stage("learn", _fixed("masks.safetensors", "learn.json"), _learn_inputs, _learn),
    Stage("bake", _bake_outputs, _bake_inputs, _bake),
    Stage("rewrite", rewrite_outputs, _rewrite_inputs, rewrite_job, _check_backend),
    Stage("build", _build_outputs, _build_inputs, _build),
    Stage("profile", _fixed("profile.json", WHY_NOT_SPARSE), _profile_inputs, _profile),
    Stage("certify", _fixed("certificate.json"), _certify_inputs, _certify),
    Stage("validate", _fixed("validation.json"), _validate_inputs, _validate),
    Stage("report", _fixed("report.html"), _report_inputs, _report),
)
