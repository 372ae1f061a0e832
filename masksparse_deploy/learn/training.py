"""A whole run of a learned method: its steps, its checkpoints and its log, resumable in the middle of an epoch."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from masksparse_deploy.core.config import MaskOptions
from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.core.files import canonical_json, sha256_bytes
from masksparse_deploy.core.masks import LayerMask, fingerprint
from masksparse_deploy.core.progress import Progress, silent
from masksparse_deploy.core.samples import Samples
from masksparse_deploy.learn.checkpoint import decode_state, read_checkpoint, write_checkpoint
from masksparse_deploy.learn.eligibility import EligibleLayer
from masksparse_deploy.learn.event_log import EventLog, require_tensorboard
from masksparse_deploy.learn.learner import Learner
from masksparse_deploy.learn.model import state_fingerprint
from masksparse_deploy.learn.positions.plan import plan_positions
from masksparse_deploy.learn.processes import joined_processes
from masksparse_deploy.learn.sparsifier import Outcome
from masksparse_deploy.learn.trainee import Trainee

__all__ = ["Training"]

_ANSWERED_COUNT = 4
# How often the loss is looked at and logged; each time the GPU has to be waited for.
_CHECK_STEPS = 50
# These change when and what is written, not what is learned.
_WITHOUT_EFFECT = {"checkpoint_steps", "tensorboard"}


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a learned method runs; what it learns is up to `prepare`.

    The loss is `masking_loss`. With `options.position_rate` the network leaves output positions out too, whatever the method
    does with its weights (see `learn.positions`). The same inputs, seed, PyTorch, thread and process count give the same
    outcome, also after an interruption. Under a launcher of several processes every one of them calls `run`, and gets the same
    outcome.

    Attributes:
        options: see `MaskOptions`.
        method: its name, which tells the checkpoints of methods apart.
        prepare: makes a copy of the network ready, in place, to learn the masks of these layers.
        checkpoint: file that holds the state; learning goes on from it if it is of the same run.
        log_folder: where the course of learning is written for TensorBoard; None for nowhere.
        progress: told after each step.
        description: what the progress says is being done.
    """

    options: MaskOptions
    method: str
    prepare: Callable[[nn.Module, Sequence[EligibleLayer]], Trainee]
    checkpoint: Path
    log_folder: Path | None = None
    progress: Progress = silent
    description: str = "learning masks"

    def run(self, model: nn.Module, layers: Sequence[EligibleLayer], train: Samples) -> Outcome:
        """Learn from the first step, or from the checkpoint, to the last; arguments are those of `Sparsifier.sparsify`.

        Raises:
            UsageError: the loss needs labels and there are none, or a loss or a gradient became infinite or NaN.
            MachineError: a device or a package is missing, or another process went away.
            OutputError: the checkpoint or the log cannot be written.
        """
        self._check_labels(train)
        with joined_processes(self.options) as processes, _quiet():
            learner = self._learner(model, layers, train)
            start = learner.masks()
            # The others need no key, as the main process alone decides what to go on from.
            key = self._key(model, layers, train, learner.key_parts) if processes.is_main else ""
            payload = processes.from_main(lambda: read_checkpoint(self.checkpoint, key))
            if payload:
                learner.restore(decode_state(payload))
            progress = processes.shown(self.progress)
            with EventLog(self.log_folder if processes.is_main else None, first_step=learner.step + 1) as log:
                while learner.step < learner.total_steps:
                    learning_rate = learner.learning_rate
                    learner.run_step()
                    progress(self.description, learner.step, learner.total_steps)
                    is_end = learner.step % learner.epoch_steps == 0 or learner.step == learner.total_steps
                    is_kept = is_end or learner.step % self.options.checkpoint_steps == 0
                    if not is_kept and learner.step % _CHECK_STEPS:
                        continue
                    log.write(learner.step, {"loss": learner.check(), "learning_rate": learning_rate})
                    if is_end and log.is_open:
                        log.write(learner.step, {"changed_share": _changed_share(start, learner.masks())})
                    if is_kept:
                        processes.on_main(partial(write_checkpoint, self.checkpoint, key, learner.state()))
            return learner.outcome()

    def check(self, model: nn.Module, layers: Sequence[EligibleLayer], train: Samples) -> None:
        """Raise what `run` would raise before its first step; arguments are those of `run`."""
        self._check_labels(train)
        if self.log_folder is not None:
            require_tensorboard()
        with joined_processes(self.options), _quiet():
            self._learner(model, layers, train)

    def _learner(self, model: nn.Module, layers: Sequence[EligibleLayer], train: Samples) -> Learner:
        if self.options.position_rate == 0:
            return Learner(model, train, self.options, lambda network: self.prepare(network, layers))
        plan = plan_positions(model, train, self.options)
        return Learner(
            model,
            train,
            self.options,
            lambda network: plan.prepare(network, lambda inner: self.prepare(inner, layers)),
            used=plan.used,
        )

    def _check_labels(self, train: Samples) -> None:
        if self.options.distillation < 1 and train.known_labels is None:
            raise UsageError(
                f"data.train has no labels, and mask.distillation {self.options.distillation} learns from labels too; add an "
                "array 'labels' with the class of every image, or set mask.distillation: 1, which learns without them"
            )

    def _key(self, model: nn.Module, layers: Sequence[EligibleLayer], train: Samples, parts: Mapping[str, Any]) -> str:
        content = {
            **parts,
            "method": self.method,
            "options": self.options.model_dump(mode="json", exclude=_WITHOUT_EFFECT),
            "layers": [layer.weight_name for layer in layers],
            "model": state_fingerprint(model),
            # The weights do not tell what the code of the network does with them.
            "answers": fingerprint({"logits": _answers(model, train)}),
            "train": train.digest,
        }
        return sha256_bytes(canonical_json(content))


def _answers(model: nn.Module, train: Samples) -> npt.NDArray[np.float32]:
    with torch.inference_mode():
        logits: npt.NDArray[np.float32] = model(torch.tensor(train.images[:_ANSWERED_COUNT])).float().numpy()
    return logits


def _changed_share(before: Mapping[str, LayerMask], after: Mapping[str, LayerMask]) -> float:
    """The share of weights that are kept in one of the mask sets only; 0 where no weights are masked."""
    changed = sum(int(np.count_nonzero(before[name].keep != after[name].keep)) for name in before)
    return changed / max(1, sum(mask.keep.size for mask in before.values()))


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what torch says about gradients of 1x1 kernels, whose strides along axes of length 1 have no meaning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        yield
