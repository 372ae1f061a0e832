"""What a report is made from."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from masksparse_deploy.core.artifacts.baking import BakeReport
from masksparse_deploy.core.artifacts.certificate import Certificate
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

__all__ = ["Provenance", "ReportInputs"]


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where the artifacts come from, as far as they do not say so themselves.

    Attributes:
        command: what was typed.
        date: as the caller wants it to be read.
        config_text: the configuration file, as written.
        versions: package -> version.
    """

    command: str = ""
    date: str = ""
    config_text: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ReportInputs:
    """The artifacts of one run; None where a stage has not run, which the report then says.

    Attributes:
        name: of the network or the job, for the title.
        selection: optional; the report is silent where there is none.
        forecast: likewise.
        update: likewise.
        sweep: likewise.
        why_not_sparse: likewise.
        rewrite: likewise, also where no layer could be rewritten.
    """

    name: str
    selection: LayerSelection | None = None
    forecast: Forecast | None = None
    update: UpdateReport | None = None
    learn: LearnReport | None = None
    bake: BakeReport | None = None
    rewrite: RewriteReport | None = None
    dense_engine: EngineArtifact | None = None
    sparse_engine: EngineArtifact | None = None
    profile: ProfileReport | None = None
    sweep: SweepReport | None = None
    why_not_sparse: SparseTactics | None = None
    certificate: Certificate | None = None
    validation: ValidationReport | None = None
    provenance: Provenance = Provenance()
