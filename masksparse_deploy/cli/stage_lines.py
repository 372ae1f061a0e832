"""What a stage of a chain has found, read back from the artifact it wrote."""

from masksparse_deploy.cli.render import bake_lines, certify_lines, engine_lines, finding_lines, learn_lines, validate_lines
from masksparse_deploy.cli.render_profile import profile_lines
from masksparse_deploy.cli.render_rewrite import rewrite_lines
from masksparse_deploy.cli.render_sparse_tactics import sparse_tactics_lines
from masksparse_deploy.core.artifacts.baking import BakeReport
from masksparse_deploy.core.artifacts.certificate import Certificate
from masksparse_deploy.core.artifacts.engines import EngineArtifact
from masksparse_deploy.core.artifacts.learning import LearnReport
from masksparse_deploy.core.artifacts.rewriting import RewriteReport
from masksparse_deploy.core.artifacts.sparse_tactics import SparseTactics
from masksparse_deploy.core.artifacts.timing import ProfileReport
from masksparse_deploy.core.artifacts.validation import ValidationReport
from masksparse_deploy.engine.select import choose_backend
from masksparse_deploy.pipeline.explaining import WHY_NOT_SPARSE
from masksparse_deploy.pipeline.job import Job

__all__ = ["stage_lines"]


def stage_lines(job: Job, stage: str) -> list[str]:
    """The lines of a stage of `masksparse deploy` that has ended well.

    Raises:
        MasksparseError: its artifact is missing or damaged.
    """
    out = job.out
    if stage == "learn":
        return learn_lines(LearnReport.read(out / "learn.json"))
    if stage == "bake":
        return bake_lines(BakeReport.read(out / "bake.json"))
    if stage == "rewrite":
        return rewrite_lines(RewriteReport.read(out / "rewrite.json"))
    if stage == "build":
        _, choice = choose_backend(job.config.engine.backend)
        dense, sparse = (EngineArtifact.read(out / f"{name}.engine.json") for name in ("dense", "sparse"))
        return [*engine_lines(sparse, choice), *finding_lines(dense, "dense engine: ")]
    if stage == "profile":
        explained = SparseTactics.read(out / WHY_NOT_SPARSE)
        # the build stage has said already of a runtime without 2:4 kernels that it has none
        told = [] if explained.has_sparse_kernels is False else sparse_tactics_lines(explained)
        return [*profile_lines(ProfileReport.read(out / "profile.json")), *told]
    if stage == "certify":
        return certify_lines(Certificate.read(out / "certificate.json"))
    return validate_lines(ValidationReport.read(out / "validation.json"))
