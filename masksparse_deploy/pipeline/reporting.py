"""From a folder of artifacts to its report."""

from datetime import datetime, timezone
from pathlib import Path
from typing import TypeVar

from masksparse_deploy.core.artifacts.baking import BakeReport
from masksparse_deploy.core.artifacts.certificate import Certificate
from masksparse_deploy.core.artifacts.document import Document
from masksparse_deploy.core.artifacts.engines import EngineArtifact
from masksparse_deploy.core.artifacts.forecast import Forecast
from masksparse_deploy.core.artifacts.learning import LearnReport
from masksparse_deploy.core.artifacts.rewriting import RewriteReport
from masksparse_deploy.core.artifacts.selection import LayerSelection
from masksparse_deploy.core.artifacts.sparse_tactics import SparseTactics
from masksparse_deploy.core.artifacts.sweeping import SweepReport
from masksparse_deploy.core.artifacts.timing import ProfileReport
from masksparse_deploy.core.artifacts.updating import UpdateReport
from masksparse_deploy.core.artifacts.validation import ValidationReport
from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.pipeline.explaining import WHY_NOT_SPARSE
from masksparse_deploy.pipeline.stamps import package_versions
from masksparse_deploy.report.inputs import Provenance, ReportInputs
from masksparse_deploy.report.render import write_report

__all__ = ["FORECAST", "REPORTED", "SELECTION", "SWEEP", "UPDATE", "report_folder"]

# Every artifact that the report shows.
REPORTED = (
    "learn.json",
    "bake.json",
    "dense.engine.json",
    "sparse.engine.json",
    "profile.json",
    WHY_NOT_SPARSE,
    "certificate.json",
    "validation.json",
)

# Shown as well where they lie in the folder; no stage of the chain writes them.
FORECAST = "forecast.json"
SELECTION = "selection.json"
UPDATE = "update.json"
SWEEP = "sweep.json"

_D = TypeVar("_D", bound=Document)


def report_folder(folder: Path, *, command: str, config_text: str = "") -> Path:
    """Write `folder / "report.html"` from the artifacts that are there, and return its path.

    Args:
        folder: the output folder of a run.
        command: what the user typed.
        config_text: the configuration file as written.

    Raises:
        UsageError: the folder holds none of them.
        ArtifactError: one of them is damaged.
        OutputError: the report cannot be written.
    """
    if not any((folder / name).is_file() for name in REPORTED):
        raise UsageError(f"{folder} holds none of {', '.join(REPORTED)}; give the output folder of 'masksparse deploy'")
    date = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    inputs = ReportInputs(
        name=folder.resolve().name,
        selection=_read(LayerSelection, folder / SELECTION),
        forecast=_read(Forecast, folder / FORECAST),
        update=_read(UpdateReport, folder / UPDATE),
        learn=_read(LearnReport, folder / "learn.json"),
        bake=_read(BakeReport, folder / "bake.json"),
        rewrite=_read(RewriteReport, folder / "rewrite.json"),
        dense_engine=_read(EngineArtifact, folder / "dense.engine.json"),
        sparse_engine=_read(EngineArtifact, folder / "sparse.engine.json"),
        profile=_read(ProfileReport, folder / "profile.json"),
        sweep=_read(SweepReport, folder / SWEEP),
        why_not_sparse=_read(SparseTactics, folder / WHY_NOT_SPARSE),
        certificate=_read(Certificate, folder / "certificate.json"),
        validation=_read(ValidationReport, folder / "validation.json"),
        provenance=Provenance(command=command, date=date, config_text=config_text, versions=package_versions()),
    )
    return write_report(folder, inputs)


def _read(kind: type[_D], path: Path) -> _D | None:
    return kind.read(path) if path.is_file() else None
