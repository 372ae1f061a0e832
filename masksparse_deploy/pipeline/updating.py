"""New weights for a network that was deployed with masks: the same masks, baked, built, certified and validated again."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from masksparse_deploy.core.artifacts.baking import BakeReport
from masksparse_deploy.core.artifacts.certificate import Certificate
from masksparse_deploy.core.artifacts.updating import UpdateReport
from masksparse_deploy.core.artifacts.validation import AccuracyComparison, ValidationReport
from masksparse_deploy.core.config import ModelOptions, UpdateOptions
from masksparse_deploy.core.errors import ArtifactError, UsageError
from masksparse_deploy.core.files import require_file, sha256_file
from masksparse_deploy.core.masks import MaskSet, read_mask_set
from masksparse_deploy.core.progress import Progress, silent
from masksparse_deploy.pipeline.job import Job, source_digest
from masksparse_deploy.pipeline.reporting import REPORTED, UPDATE, report_folder
from masksparse_deploy.pipeline.rewriting import REWRITE
from masksparse_deploy.pipeline.stages import STAGES, Stage
from masksparse_deploy.pipeline.update_masks import (
    StatisticsSource,
    Weights,
    carried_over,
    fit_of_masks,
    masked_weights,
    source_of_statistics,
)
from masksparse_deploy.pipeline.update_report import (
    Certified,
    advice,
    changed_operators,
    compare,
    grown_layers,
    is_within_end_to_end,
    is_within_layerwise,
    updated_layers,
)

__all__ = ["AGAINST_DENSE", "AGAINST_MASKED", "Update"]

MASKS = "masks.safetensors"
# Certificates of the new masked network against the old ones; certificate.json is that against its own dense twin.
AGAINST_MASKED = "certificate.masked-old.json"
AGAINST_DENSE = "certificate.dense-old.json"
_NEEDED = (MASKS, "dense.onnx", "sparse.onnx", "bake.json", "certificate.json")


@dataclass(frozen=True, eq=False, kw_only=True)
class Update:
    """What to update, with which weights, and where to.

    Attributes:
        before: the finished run, its `out` the folder of its artifacts; nothing there is changed.
        weights: the checkpoint with the new weights, of the same network.
        out: the folder of the new artifacts.
        options: what to do about statistics, and the thresholds.
    """

    before: Job
    weights: Path
    out: Path
    options: UpdateOptions

    @cached_property
    def job(self) -> Job:
        """The chain with the new weights."""
        model = ModelOptions(factory=self.before.config.model.factory, weights=str(self.weights.resolve()))
        config = self.before.config.model_copy(update={"model": model, "out": str(self.out)})
        return replace(self.before, config=config, out=self.out)

    @cached_property
    def masks(self) -> MaskSet:
        """The mask set of the finished run."""
        return read_mask_set(self.before.out / MASKS)

    @property
    def statistics(self) -> StatisticsSource:
        """Where the batch-norm statistics of the sparse network come from."""
        return source_of_statistics(self.masks, self.options)

    def check(self) -> None:
        """Make sure that there is a finished run, of this configuration, and another folder to write to.

        Raises:
            UsageError: a file is missing, the run was baked otherwise, or the new folder is the old one.
            ArtifactError: the artifacts of the run don't belong together.
        """
        run = self.before.out
        missing = [name for name in _NEEDED if not (run / name).is_file()]
        if missing:
            raise UsageError(
                f"{run} holds no {', '.join(missing)}; give the output folder of a finished 'masksparse deploy' with --run"
            )
        if self.out.resolve() == run.resolve():
            raise UsageError(f"--out {self.out} is the folder of the run that is updated; choose another one")
        require_file(self.weights, "checkpoint")
        certificate, baked = Certificate.read(run / "certificate.json"), BakeReport.read(run / "bake.json")
        for name, recorded in (("dense.onnx", certificate.dense_sha256), ("sparse.onnx", certificate.sparse_sha256)):
            if sha256_file(run / name) != recorded:
                raise ArtifactError(f"{run / name} is not the file of its certificate; run 'masksparse deploy' there again")
        if baked.mask_set_sha256 != self.masks.digest:
            raise ArtifactError(f"{run / MASKS} is not the mask set that was baked; run 'masksparse deploy' there again")
        bake = self.before.config.bake
        if (baked.precision, baked.opset) != (bake.precision, bake.opset):
            raise UsageError(
                f"{run} was baked in {baked.precision} and opset {baked.opset}, and the configuration says {bake.precision} "
                f"and {bake.opset}; an update leaves both: use the configuration of the run"
            )

    @property
    def stages(self) -> tuple[Stage, ...]:
        """What `pipeline.run.run_chain` runs on `job`: the chain with the old masks, and what is compared with the old run."""
        chain = {stage.name: stage for stage in STAGES}
        return (
            Stage("masks", _named(MASKS), self._masks_inputs, self._masks),
            *(chain[name] for name in ("bake", "rewrite", "build", "profile", "certify")),
            Stage("compare", _named(AGAINST_MASKED, AGAINST_DENSE), self._compare_inputs, self._compare),
            chain["validate"],
            Stage("update", _named(UPDATE), self._update_inputs, self._update),
            Stage("report", _named("report.html"), self._report_inputs, _report),
        )

    def _masks_inputs(self, job: Job) -> dict[str, Any]:
        again = self.statistics == "re-estimated"
        return {
            "masks": self.masks.digest,
            "model": job.model_digests(),
            "statistics": self.statistics,
            "train": source_digest(job.config.data.train, job.folder) if again else "",
            "data": job.config.data.model_dump(mode="json") if again else "",
            "mask": job.config.mask.model_dump(mode="json") if again else "",
        }

    def _masks(self, job: Job, progress: Progress) -> None:
        from masksparse_deploy.learn.model import load_model, state_fingerprint

        model = load_model(job.config.model, job.folder)
        carried_over(
            self.masks,
            model,
            source_sha256=state_fingerprint(model),
            statistics=self.statistics,
            train=job.train if self.statistics == "re-estimated" else None,
            options=job.config.mask,
            progress=progress,
        ).write(job.out / MASKS)

    def _compare_inputs(self, job: Job) -> dict[str, Any]:
        files = [self.before.out / "dense.onnx", self.before.out / "sparse.onnx", job.out / "sparse.onnx"]
        return {
            "files": [sha256_file(file) for file in files],
            "test": [source_digest(job.config.data.test, job.folder), job.config.data.model_dump(mode="json")],
            "certify": job.config.certify.model_dump(mode="json"),
        }

    def _compare(self, job: Job, progress: Progress) -> None:
        from masksparse_deploy.pipeline.norms import write_certificate

        for name, out in (("sparse.onnx", AGAINST_MASKED), ("dense.onnx", AGAINST_DENSE)):
            write_certificate(
                self.before.out / name,
                job.out / "sparse.onnx",
                job.test,
                job.config.certify,
                out=job.out / out,
                remark=lambda text: progress(text, 0, 1),
                progress=progress,
            )

    def _update_inputs(self, job: Job) -> dict[str, Any]:
        names = ("certificate.json", MASKS)
        old = self.before.out / "validation.json"
        return {
            "old": [self.before.digest(name) for name in names],
            "old validation": sha256_file(old) if old.is_file() else "",
            "old model": self._old_checkpoint_digest(),
            "new": [job.digest(name) for name in (*names, AGAINST_MASKED, AGAINST_DENSE, "validation.json")],
            "options": self.options.model_dump(mode="json"),
        }

    def _update(self, job: Job, progress: Progress) -> None:
        self.report(progress).write(job.out / UPDATE)

    def report(self, progress: Progress = silent) -> UpdateReport:
        """What the update did, from the artifacts of both folders.

        Raises:
            MasksparseError: an artifact is missing or damaged.
        """
        job = self.job
        old, new = (Certified(folder, job.test, self.options.growth, progress) for folder in (self.before.out, job.out))
        against_masked = Certificate.read(job.out / AGAINST_MASKED)
        comparisons = (
            compare("dense, new weights", job.out / "certificate.json"),
            compare("masked, old weights", job.out / AGAINST_MASKED),
            compare("dense, old weights", job.out / AGAINST_DENSE, first=against_masked, second=old.certificate),
        )
        layers, others = updated_layers(old, new), changed_operators(old, new)
        masks = fit_of_masks(self.masks, self._new_weights(), self._old_weights(), points=self.options.relearn_points)
        relearn, sentence = advice(masks, points=self.options.relearn_points)
        accuracy, (before, _) = ValidationReport.read(job.out / "validation.json").accuracy, self._old_accuracy
        return UpdateReport(
            dense_old_sha256=old.certificate.dense_sha256,
            sparse_old_sha256=old.certificate.sparse_sha256,
            dense_new_sha256=new.certificate.dense_sha256,
            sparse_new_sha256=new.certificate.sparse_sha256,
            masks_old_sha256=self.masks.digest,
            masks_new_sha256=read_mask_set(job.out / MASKS).digest,
            data_sha256=job.test.digest,
            statistics=self.statistics,
            remarks=tuple(self._remarks(old.certificate)),
            comparisons=comparisons,
            growth=self.options.growth,
            radius=old.radius,
            end_to_end_old=old.budgets.bound,
            end_to_end_limit=old.budgets.limit,
            end_to_end_share=old.budgets.share,
            end_to_end_new=new.budgets.bound,
            other_changes=others,
            grown=grown_layers(layers, growth=self.options.growth),
            within_layerwise=is_within_layerwise(layers, others, old, new),
            within_end_to_end=is_within_end_to_end(layers, others),
            layers=layers,
            masks=masks,
            relearn_points=self.options.relearn_points,
            relearn=relearn,
            advice=sentence,
            dense_correct_old=None if before is None else before.dense_correct,
            sparse_correct_old=None if before is None else before.sparse_correct,
            dense_correct_new=accuracy.dense_correct,
            sparse_correct_new=accuracy.sparse_correct,
            sample_count=accuracy.total,
        )

    def _remarks(self, certificate: Certificate) -> list[str]:
        remarks = []
        if self.masks.weights:
            remarks.append(
                f"the old mask set brought new values for {len(self.masks.weights)} parameters, which belonged to the old "
                "weights; they are left behind, and the new weights are masked as they are: if that costs too much, run "
                "'masksparse deploy' for the new checkpoint, which fits or trains them again"
            )
        if certificate.data_sha256 != self.job.test.digest:
            remarks.append(
                "the old certificate was made with other images: bounds are not added to its own, and the end-to-end budget "
                "is for inputs up to the largest norm of today's images"
            )
        _, unread = self._old_accuracy
        return remarks if unread is None else [*remarks, unread]

    def _new_weights(self) -> Weights:
        return masked_weights(self.job.config.model, self.job.folder, self.masks)[1]

    def _old_weights(self) -> Weights | None:
        """The weights that the masks were made for, None where the checkpoint is gone or holds others."""
        if not self._old_checkpoint_digest():
            return None
        source_sha256, weights = masked_weights(self.before.config.model, self.before.folder, self.masks)
        return weights if source_sha256 == self.masks.source_sha256 else None

    def _old_checkpoint_digest(self) -> str:
        path = self.before.folder / self.before.config.model.weights
        return sha256_file(path) if path.is_file() else ""

    @cached_property
    def _old_accuracy(self) -> tuple[AccuracyComparison | None, str | None]:
        """On the same samples, if the old run has it, and a remark where it cannot be read: it is only to compare with."""
        path = self.before.out / "validation.json"
        if not path.is_file():
            return None, None
        try:
            report = ValidationReport.read(path)
        except ArtifactError:  # its text has the path of this machine, which reports do not show
            return None, "the accuracy of the old run is not shown: its validation.json is damaged or of another version"
        return (report.accuracy if report.data_sha256 == self.job.test.digest else None), None

    def _report_inputs(self, job: Job) -> dict[str, Any]:
        shown = [name for name in (*REPORTED, REWRITE, UPDATE) if (job.out / name).is_file()]
        return {"files": {name: job.digest(name) for name in shown}, "config": job.config_text}


def _report(job: Job, progress: Progress) -> None:
    progress("report", 0, 1)
    report_folder(job.out, command=job.command, config_text=job.config_text)


def _named(*names: str) -> Callable[[Job], tuple[str, ...]]:
    return lambda job: names
