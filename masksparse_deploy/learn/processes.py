"""Several processes that learn together, as `accelerate launch` or `torchrun` start them; alone without a launcher."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import GradientAccumulationPlugin, parse_flag_from_env
from torch import distributed

from masksparse_deploy.core.config import MaskOptions
from masksparse_deploy.core.errors import MachineError, MasksparseError, UsageError
from masksparse_deploy.core.progress import Progress, silent

__all__ = ["Processes", "joined_processes", "start_accelerator"]

_PRECISIONS = {"none": "no", "bfloat16": "bf16", "float16": "fp16"}
_FAILED = -1


@dataclass(frozen=True, kw_only=True)
class Processes:
    """This process and those that it learns together with.

    Attributes:
        count: how many there are.
        index: which of them this is, from 0.
        device: where this process computes.
    """

    count: int
    index: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is the one process that writes files and shows progress."""
        return self.index == 0

    def shown(self, progress: Progress) -> Progress:
        """`progress` in the main process; nothing is shown by the others."""
        return progress if self.is_main else silent

    def from_main(self, action: Callable[[], bytes]) -> bytes:
        """What `action` returns in the main process, which alone calls it; the others wait for it.

        Raises:
            MasksparseError: in the others, `action` failed in the main process, which raises what it raised.
        """
        if self.count == 1:
            return action()
        result = b""
        if self.is_main:
            try:
                result = action()
            except BaseException:  # an interruption too: the others must not wait for what will not come
                self._broadcast(torch.tensor([_FAILED]))
                raise
        length = int(self._broadcast(torch.tensor([len(result)])))
        if length == _FAILED:
            raise MasksparseError("the main process failed, see its message; all processes stop")
        content = torch.frombuffer(bytearray(result), dtype=torch.uint8) if result else torch.empty(length, dtype=torch.uint8)
        return self._broadcast(content).numpy().tobytes() if length else b""

    def on_main(self, action: Callable[[], object]) -> None:
        """Call `action` in the main process; the others wait until it is done, and fail if it fails (see `from_main`)."""

        def act() -> bytes:
            action()
            return b""

        self.from_main(act)

    def agreed(self, count: int) -> int:
        """The main process's `count`, so that all of them go the same way where roundings might differ; not negative."""
        return int(self.from_main(lambda: str(count).encode()))

    def _broadcast(self, tensor: torch.Tensor) -> torch.Tensor:
        # NCCL only knows tensors on the GPU.
        tensor = tensor.to(self.device)
        distributed.broadcast(tensor, src=0)
        return tensor.cpu()


@contextmanager
def joined_processes(options: MaskOptions) -> Iterator[Processes]:
    """Join the processes that the launcher started, and leave them at the end of the block.

    Args:
        options: `device` says where learning runs.

    Raises:
        MachineError: there is no GPU, or another process went away.
    """
    was_joined = distributed.is_available() and distributed.is_initialized()
    _forget_accelerator()
    state = PartialState(cpu=_device_type(options) == "cpu")
    try:
        yield Processes(count=state.num_processes, index=state.process_index, device=state.device)
    except RuntimeError as error:
        if state.num_processes > 1 and _is_lost_connection(error):
            raise MachineError(
                f"process {state.process_index} of {state.num_processes} lost the others; the message of the one that stopped "
                "first says why; start all of them again, and learning goes on from the last checkpoint"
            ) from error
        raise
    finally:
        if not was_joined and distributed.is_available() and distributed.is_initialized():
            # What still holds the group, in cycles, would end its threads while the interpreter goes down, which aborts.
            gc.collect()
            distributed.destroy_process_group()


def start_accelerator(options: MaskOptions) -> Accelerator:
    """Hugging Face's Accelerate with the device, the precision and the accumulation that the options ask for.

    Raises:
        UsageError: float16 without a GPU.
        MachineError: there is no GPU.
    """
    device_type = _device_type(options)
    if options.autocast == "float16" and device_type == "cpu":
        raise UsageError("mask.autocast float16 needs a GPU; on the CPU use bfloat16, or none")
    _forget_accelerator()
    return Accelerator(
        cpu=device_type == "cpu",
        mixed_precision=_PRECISIONS[options.autocast],
        # The plain argument gives way to a variable of the environment.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=options.accumulate),
    )


def _device_type(options: MaskOptions) -> str:
    if options.device == "cuda" and not torch.cuda.is_available():
        raise MachineError(
            "mask.device is cuda, and PyTorch finds no GPU; check the driver ('nvidia-smi'), or use mask.device cpu"
        )
    wants_cpu = options.device == "cpu" or (options.device == "auto" and parse_flag_from_env("ACCELERATE_USE_CPU"))
    return "cuda" if torch.cuda.is_available() and not wants_cpu else "cpu"


def _forget_accelerator() -> None:
    """Accelerate keeps one set of options a Python process and refuses others; every run starts with its own."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def _is_lost_connection(error: RuntimeError) -> bool:
    # Gloo raises plain RuntimeErrors, known by the name in their text.
    return isinstance(error, distributed.DistError) or "gloo" in str(error)
