"""The training loop of every learned method, one step at a time, on Hugging Face Accelerate."""

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from accelerate.utils import broadcast
from torch import nn

from masksparse_deploy.core.artifacts.learning import TrainingPoint
from masksparse_deploy.core.config import MaskOptions
from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.core.masks import LayerMask
from masksparse_deploy.core.samples import Samples
from masksparse_deploy.learn.batch_norm import batch_norms, running_statistics
from masksparse_deploy.learn.batches import Batches
from masksparse_deploy.learn.loss import masking_loss
from masksparse_deploy.learn.processes import start_accelerator
from masksparse_deploy.learn.sparsifier import Outcome
from masksparse_deploy.learn.teacher import teacher_copy
from masksparse_deploy.learn.trainee import Trainee

__all__ = ["Learner"]

# Of float16's gradient scale, which halves with every step that is left out, nothing is left after so many in a row.
_MOST_SKIPPED_STEPS = 40
# Images on which the teacher is held against the network.
_COMPARED_COUNT = 4


class Learner:
    """One run: a copy of the network made ready for training, its optimizer and schedule, and how far learning is.

    The copy is in evaluation mode, so that dropout stays off, except for what chooses its masks, and batch norm where its
    statistics follow the masks. With several processes, gradients are averaged over them, and statistics are those of the main
    process.

    Attributes:
        step: steps done.
        total_steps: steps to do.
        epoch_steps: steps of a pass over the training images.
        history: the mean loss of each finished epoch.
        learning_rate: of the next step.
    """

    def __init__(
        self,
        model: nn.Module,
        train: Samples,
        options: MaskOptions,
        prepare: Callable[[nn.Module], Trainee],
        *,
        used: npt.NDArray[np.int64] | None = None,
    ) -> None:
        """Get ready for the first step.

        Args:
            model: the trained network in evaluation mode; not changed.
            train: training images and labels.
            options: see `MaskOptions`.
            prepare: makes a copy of the network ready, in place.
            used: which of the training images are trained on, int64; None for all.

        Raises:
            UsageError: options, network and data do not fit one another.
            MachineError: the GPU that is asked for is missing.
        """
        self._options = options
        self._accelerator = start_accelerator(options)
        device = self._accelerator.device
        seen = torch.from_numpy(train.images[:_COMPARED_COUNT]).to(device)
        self._teacher = teacher_copy(model, seen) if options.distillation > 0 else None
        # Where it will run, as what is made ready may depend on that.
        self._student = copy.deepcopy(model).to(device)
        self._trainee = prepare(self._student)
        if self._accelerator.num_processes > 1:
            _freeze_unreached(self._student, seen)
        self._norms = batch_norms(self._student) if options.batch_norm else {}
        for module in self._norms.values():
            module.train()
        self._network = self._accelerator.prepare_model(self._student)
        self._batches = Batches(
            train=train,
            options=options,
            used=used,
            process_count=self._accelerator.num_processes,
            process_index=self._accelerator.process_index,
        )
        self.epoch_steps = self._batches.epoch_steps
        self.total_steps = min(options.epochs * self.epoch_steps, options.max_steps or options.epochs * self.epoch_steps)
        self.step = 0
        self.history: list[TrainingPoint] = []
        # Losses of the running epoch by step, on the device; up to `_checked_count` they are the mean over the processes.
        self._losses = torch.zeros(self.epoch_steps, device=device)
        self._checked_count = 0
        self._skipped_count = 0
        optimizer = self._trainee.optimizer()
        self._peak = options.learning_rate or self._trainee.peak_learning_rate
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self._peak, total_steps=self.total_steps)
        self._optimizer = self._accelerator.prepare_optimizer(optimizer)
        if self._accelerator.num_processes > 1:
            self._settle_buckets()

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step."""
        return float(self._schedule.get_last_lr()[0])

    @property
    def key_parts(self) -> dict[str, Any]:
        """What the result depends on besides network, data and options."""
        accelerator = self._accelerator
        return {"processes": accelerator.num_processes, "device": accelerator.device.type, "torch": torch.__version__}

    def run_step(self) -> None:
        """One step of the optimizer; does not wait for the GPU, so that `check` tells later what went wrong."""
        index = self.step % self.epoch_steps
        with _repeatable_kernels():
            self._trainee.begin_step(self.step, self.total_steps, self._batches.noise_seed(self.step))
            for images, labels in self._batches.of_step(self.step, self._accelerator.device):
                with self._accelerator.accumulate(self._network):
                    loss = self._loss(images, labels)
                    self._accelerator.backward(loss)
                    self._optimizer.step()
                    self._optimizer.zero_grad()
                self._losses[index] += loss.detach() / self._options.accumulate
        if self._optimizer.step_was_skipped:
            self._skipped_count += 1
        else:
            self._skipped_count = 0
            self._schedule.step()
        self._trainee.end_step(self.step, self._losses[index])
        self.step += 1

    def check(self) -> float:
        """Look at the steps since the last check, in all processes together, and finish the epoch if it is at its end.

        Returns:
            Their mean loss.

        Raises:
            UsageError: a loss, or a gradient, became NaN or infinite.
        """
        end = (self.step - 1) % self.epoch_steps + 1
        fresh = slice(self._checked_count, end)
        self._losses[fresh] = self._accelerator.reduce(self._losses[fresh], "mean")
        losses = self._losses[fresh].tolist()
        for step, loss in enumerate(losses, self.step - len(losses) + 1):
            if not math.isfinite(loss):
                raise UsageError(f"the loss became {loss} in step {step}; {self._remedy()}")
        # Masks of such parameters are as good as random, while the loss stays finite.
        for name, parameters in self._trainee.learned().items():
            if not all(bool(torch.isfinite(parameter).all()) for parameter in parameters):
                raise UsageError(f"the gradients of {name} became NaN or infinite by step {self.step}; {self._remedy()}")
        if self._skipped_count > _MOST_SKIPPED_STEPS:
            raise UsageError(
                f"the gradients were NaN or infinite in the {self._skipped_count} steps up to step {self.step}; "
                f"{self._remedy()}"
            )
        self._checked_count = end
        if end == self.epoch_steps or self.step == self.total_steps:
            self.history.append(TrainingPoint(epoch=len(self.history), loss=math.fsum(self._losses[:end].tolist()) / end))
            self._losses.zero_()
            self._checked_count = 0
        return math.fsum(losses) / len(losses)

    def masks(self) -> Mapping[str, LayerMask]:
        """The masks as they are now, by weight name; the same in every process."""
        return self._trainee.masks()

    def outcome(self) -> Outcome:
        """Masks, the statistics that followed them, new weights, and history; all processes call it, and get the same."""
        # Each process has seen its own images in the last step.
        for module in self._norms.values():
            broadcast(dict(module.named_buffers()))
        statistics = running_statistics(self._student) if self._norms else {}
        return Outcome(
            masks=self.masks(),
            statistics=statistics,
            history=tuple(self.history),
            weights=self._trainee.weights(),
            positions=self._trainee.positions(),
        )

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on, after a `check`: tensors and plain values."""
        scaler = self._accelerator.scaler
        return {
            "step": self.step,
            "history": [point.model_dump() for point in self.history],
            "losses": self._losses[: self._checked_count].clone(),
            "skipped_count": self._skipped_count,
            "trainee": self._trainee.state(),
            "batch_norms": {name: dict(module.named_buffers()) for name, module in self._norms.items()},
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else {},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from what `state` returned."""
        self.step = state["step"]
        self.history = [TrainingPoint.model_validate(point) for point in state["history"]]
        self._checked_count = len(state["losses"])
        self._losses[: self._checked_count] = state["losses"].to(self._losses.device)
        self._skipped_count = state["skipped_count"]
        with torch.no_grad():
            self._trainee.restore(state["trainee"])
            for name, module in self._norms.items():
                for key, buffer in module.named_buffers():
                    buffer.copy_(state["batch_norms"][name][key])
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        if self._accelerator.scaler is not None:
            self._accelerator.scaler.load_state_dict(state["scaler"])

    def _loss(self, images: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        dense_logits = None
        with self._accelerator.autocast():
            # Before the other network, whose activations stay in memory until the backward pass.
            if self._teacher is not None:
                with torch.no_grad():
                    dense_logits = self._teacher(images).float()
            logits = self._network(images).float()
        share, temperature = self._options.distillation, self._options.temperature
        return masking_loss(logits, labels, dense_logits, distillation=share, temperature=temperature)

    def _settle_buckets(self) -> None:
        """One pass without effect, after which gradients are put together as they will be in all steps.

        DistributedDataParallel sets their order after the first backward pass. Sums over three or more processes depend on it,
        so that learning that goes on after an interruption would otherwise round its first sums differently.
        """
        before = copy.deepcopy({name: module.state_dict() for name, module in self._norms.items()})
        images, _ = next(self._batches.of_step(0, self._accelerator.device))
        (0 * self._network(images).float().sum()).backward()
        self._optimizer.zero_grad()
        for name, module in self._norms.items():
            module.load_state_dict(before[name])

    def _remedy(self) -> str:
        return f"try a mask.learning_rate below {self._peak}, or mask.autocast: none"


def _freeze_unreached(network: nn.Module, images: torch.Tensor) -> None:
    """Take out what no gradient reaches, as a head that does not run: DistributedDataParallel would wait for it."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(network(images).float().sum(), parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.requires_grad_(gradient is not None)


@contextmanager
def _repeatable_kernels() -> Iterator[None]:
    """Have cuDNN take kernels that add up in the same order in every run, not the fastest."""
    cudnn: Any = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark = before
