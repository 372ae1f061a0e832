"""The rewrite stage of a chain, and which file the sparse engine is built from after it."""

from pathlib import Path

from masksparse_deploy.core.artifacts.rewriting import RewriteReport
from masksparse_deploy.core.config import RewriteOptions
from masksparse_deploy.core.progress import Progress
from masksparse_deploy.pipeline.job import Job

__all__ = ["REWRITE", "REWRITTEN", "built_from", "rewrite_job", "rewrite_outputs"]

REWRITE = "rewrite.json"
REWRITTEN = "rewritten.onnx"
_SPARSE = "sparse.onnx"


def rewrite_job(job: Job, progress: Progress) -> None:
    """Rewrite the layers of the sparse file that get faster by it; where there are none, nothing is timed."""
    from masksparse_deploy.rewrite.run import rewrite

    rewrite(job.out / _SPARSE, _options(job), job.engine, out=job.out, progress=progress)


def rewrite_outputs(job: Job) -> tuple[str, ...]:
    """What the stage wrote."""
    return (REWRITE,) if built_from(job.out) == _SPARSE else (REWRITE, REWRITTEN)


def built_from(out: Path) -> str:
    """Name of the file in `out` that the sparse engine is built from: the rewritten one where one was written.

    Raises:
        UsageError: the stage has not run.
        ArtifactError: its report is damaged.
    """
    return _SPARSE if RewriteReport.read(out / REWRITE).rewritten_sha256 is None else REWRITTEN


def _options(job: Job) -> RewriteOptions:
    """With the cache from the configuration's folder on, as all its paths are."""
    options = job.config.rewrite
    return options if options.cache is None else options.model_copy(update={"cache": str(job.folder / options.cache)})
