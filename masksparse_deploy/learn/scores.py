"""Learned masks on frozen weights: one score per weight, hard selection, straight-through gradient."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional

from masksparse_deploy.core.artifacts.learning import TrainingPoint
from masksparse_deploy.core.config import MaskOptions
from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.core.files import canonical_json, sha256_bytes
from masksparse_deploy.core.masks import LayerMask, fingerprint
from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.core.progress import Progress, silent
from masksparse_deploy.core.samples import Samples
from masksparse_deploy.learn.augmentation import augment
from masksparse_deploy.learn.batch_norm import batch_norms, running_statistics
from masksparse_deploy.learn.checkpoint import read_checkpoint, write_checkpoint
from masksparse_deploy.learn.eligibility import GROUP_AXIS, EligibleLayer
from masksparse_deploy.learn.model import state_fingerprint
from masksparse_deploy.learn.selector import Selector
from masksparse_deploy.learn.sparsifier import Outcome, Sparsifier

__all__ = ["ScoreSelector", "Scores", "initial_scores", "select_largest"]

_ANSWERED_COUNT = 4


@final
class ScoreSelector(Selector):
    """One score per weight; the N highest scores of every group are chosen, in training as in evaluation.

    Any N:M up to M = 16. Scores start at |w| relative to the mean of the group, so that learning starts at magnitude masks.

    Attributes:
        scores: float32, the weight's shape.
    """

    def __init__(self, weight: torch.Tensor, pattern: NMPattern) -> None:
        """Start at the magnitude of `weight`, float32 (out_channels, in_channels, ...), in_channels % M == 0."""
        super().__init__(pattern)
        self.scores = nn.Parameter(initial_scores(weight, pattern.m))

    def mask(self) -> torch.Tensor:
        """See `Selector.mask`; among equal scores the one with the smaller index is chosen."""
        return select_largest(self.scores, self.pattern)


def initial_scores(weight: torch.Tensor, m: int) -> torch.Tensor:
    """|w| relative to the mean |w| of its group; ones where a whole group is zero. Same shape as `weight`."""
    magnitude = weight.detach().abs().reshape(weight.shape[0], -1, m, *weight.shape[2:])
    mean = magnitude.mean(2, keepdim=True)
    return torch.where(mean > 0, magnitude / mean, torch.ones_like(magnitude)).reshape(weight.shape).contiguous()


def select_largest(scores: torch.Tensor, pattern: NMPattern) -> torch.Tensor:
    """1.0 for the N largest scores of every group along axis 1, else 0.0; the gradient passes straight through to all scores.

    Among equal scores the one with the smaller index is selected, as in `NMPattern.keep_largest`. The estimator is that of
    Ramanujan et al. 2020, "What's Hidden in a Randomly Weighted Neural Network?", with the selection within groups of M.

    Args:
        scores: float32 (out_channels, in_channels, ...), in_channels % M == 0.
        pattern: N:M.
    """
    selected: torch.Tensor = _StraightThrough.apply(scores, pattern)  # type: ignore[no-untyped-call]
    return selected


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: torch.Tensor, pattern: NMPattern) -> torch.Tensor:
        grouped = scores.reshape(scores.shape[0], -1, pattern.m, *scores.shape[2:]).unbind(2)
        # How many scores of the group come before each one; pair by pair, as sorting short rows is slower.
        ranks = [torch.zeros_like(score, dtype=torch.int8) for score in grouped]
        for later in range(pattern.m):
            for earlier in range(later):
                earlier_wins = grouped[earlier] >= grouped[later]
                ranks[later] += earlier_wins
                ranks[earlier] += ~earlier_wins
        return (torch.stack(ranks, 2) < pattern.n).reshape(scores.shape).to(scores.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient, None


@final
@dataclass(frozen=True, kw_only=True)
class Scores(Sparsifier):
    """Learns one score per weight; the network computes with the weights of the N highest scores of every group.

    Loss: (1 - distillation) CE(logits, labels) + distillation T^2 KL(dense || masked), both distributions at temperature T.
    Dropout stays off. With `options.batch_norm`, running statistics follow the masks while they are learned.

    Attributes:
        options: see `MaskOptions`.
        checkpoint: file that holds the state after the last whole epoch; learning continues from it if it is of the same run.
        progress: told after each step.
    """

    options: MaskOptions
    checkpoint: Path
    progress: Progress = silent

    def sparsify(self, model: nn.Module, layers: Sequence[EligibleLayer], train: Samples) -> Outcome:
        """See `Sparsifier.sparsify`.

        Raises:
            UsageError: the loss or a gradient became infinite or NaN.
        """
        learner = _Learner(model, layers, train, self.options)
        key = self._key(model, layers, train)
        state = read_checkpoint(self.checkpoint, key)
        if state is not None:
            learner.restore(state)
        while learner.step < learner.total_steps:
            learner.run_epoch(self.progress)
            write_checkpoint(self.checkpoint, key, learner.state())
        return learner.outcome()

    def _key(self, model: nn.Module, layers: Sequence[EligibleLayer], train: Samples) -> str:
        content = {
            "options": self.options.model_dump(mode="json"),
            "layers": [layer.weight_name for layer in layers],
            "model": state_fingerprint(model),
            # The weights do not tell what the code of the network does with them.
            "answers": fingerprint({"logits": _answers(model, train)}),
            "train": train.digest,
            "torch": torch.__version__,
        }
        return sha256_bytes(canonical_json(content))


def _answers(model: nn.Module, train: Samples) -> npt.NDArray[np.float32]:
    with torch.inference_mode():
        logits: npt.NDArray[np.float32] = model(torch.tensor(train.images[:_ANSWERED_COUNT])).float().numpy()
    return logits


class _Learner:
    """The state of one run: scores, optimizer, schedule, and a copy of the network whose statistics may move."""

    def __init__(self, model: nn.Module, layers: Sequence[EligibleLayer], train: Samples, options: MaskOptions) -> None:
        self.options = options
        self.pattern = NMPattern.parse(options.pattern)
        self.train = train
        self.teacher = model
        self.student = copy.deepcopy(model)
        if options.batch_norm:
            for module in batch_norms(self.student).values():
                module.train()
        self.weights = {layer.weight_name: model.get_parameter(layer.weight_name).detach() for layer in layers}
        self.scores = {name: initial_scores(w, self.pattern.m).requires_grad_() for name, w in self.weights.items()}
        # Images that do not fill a batch are left out of an epoch, unless they are all there is.
        self.batch_size = min(options.batch_size, len(train))
        self.epoch_steps = len(train) // self.batch_size
        self.total_steps = options.epochs * self.epoch_steps
        if options.max_steps is not None:
            self.total_steps = min(self.total_steps, options.max_steps)
        self.step = 0
        self.history: list[TrainingPoint] = []
        # Decay would shrink all scores of a group alike, so it is off.
        self.optimizer = torch.optim.AdamW(self.scores.values(), weight_decay=0.0)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, options.learning_rate, total_steps=self.total_steps)

    def run_epoch(self, progress: Progress) -> None:
        """One pass over the training images, or what is left of the steps."""
        epoch = len(self.history)
        generator = np.random.default_rng([self.options.seed, epoch])
        order = generator.permutation(len(self.train))
        count = min(self.epoch_steps, self.total_steps - self.step)
        total = 0.0
        for index in range(count):
            chosen = order[index * self.batch_size : (index + 1) * self.batch_size]
            images = augment(torch.from_numpy(self.train.images[chosen]), self.options.augment, generator)
            loss = self._loss(images.contiguous(memory_format=torch.channels_last), torch.from_numpy(self.train.labels[chosen]))
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            self.schedule.step()
            self.step += 1
            total += loss.item()
            if not math.isfinite(total):
                raise UsageError(f"the loss became {loss.item()} in step {self.step}; {self._remedy()}")
            progress(f"learning masks, epoch {epoch + 1}", self.step, self.total_steps)
        # Masks of such scores are as good as random, while the loss stays finite.
        for name, scores in self.scores.items():
            if not bool(torch.isfinite(scores).all()):
                raise UsageError(f"the gradients of {name} became NaN or infinite in epoch {epoch + 1}; {self._remedy()}")
        self.history.append(TrainingPoint(epoch=epoch, loss=total / count))

    def _remedy(self) -> str:
        return f"try a mask.learning_rate below {self.options.learning_rate}, or mask.autocast: none"

    def _loss(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        share, temperature = self.options.distillation, self.options.temperature
        masked = {name: weight * select_largest(self.scores[name], self.pattern) for name, weight in self.weights.items()}
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.options.autocast == "bfloat16"):
            logits = functional_call(self.student, masked, (images,)).float()
            if share > 0:
                with torch.no_grad():
                    target = functional.log_softmax(self.teacher(images).float() / temperature, 1)
        loss = torch.zeros(())
        if share < 1:
            loss = loss + (1 - share) * functional.cross_entropy(logits, labels)
        if share > 0:
            soft = functional.log_softmax(logits / temperature, 1)
            divergence = functional.kl_div(soft, target, reduction="batchmean", log_target=True)
            loss = loss + share * temperature**2 * divergence
        return loss

    def outcome(self) -> Outcome:
        """The masks of the highest scores, and the statistics that followed them."""
        masks = {
            name: LayerMask(
                weight_name=name,
                keep=self.pattern.keep_largest(scores.detach().numpy(), group_axis=GROUP_AXIS),
                group_axis=GROUP_AXIS,
                pattern=self.pattern,
            )
            for name, scores in self.scores.items()
        }
        statistics = running_statistics(self.student) if self.options.batch_norm else {}
        return Outcome(masks=masks, statistics=statistics, history=tuple(self.history))

    def state(self) -> dict[str, Any]:
        """Everything that the next epoch depends on: tensors and plain values."""
        return {
            "step": self.step,
            "history": [point.model_dump() for point in self.history],
            "scores": {name: scores.detach() for name, scores in self.scores.items()},
            "buffers": dict(self.student.named_buffers()),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from what `state` returned."""
        self.step = state["step"]
        self.history = [TrainingPoint.model_validate(point) for point in state["history"]]
        with torch.no_grad():
            for name, scores in self.scores.items():
                scores.copy_(state["scores"][name])
            for name, buffer in self.student.named_buffers():
                buffer.copy_(state["buffers"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
