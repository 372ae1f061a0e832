"""What is refused of masked positions before any work starts: networks they do not belong to, precisions they are not for."""

from typing import TYPE_CHECKING, Any

from masksparse_deploy.core.config import BakeOptions
from masksparse_deploy.core.errors import ArtifactError, UsageError
from masksparse_deploy.core.masks import MaskSet
from masksparse_deploy.core.optional import require

if TYPE_CHECKING:
    from torch import nn

__all__ = ["refuse_precision", "require_positions_fit"]


def require_positions_fit(model: "nn.Module", masks: MaskSet, options: BakeOptions) -> None:
    """Check that masks of positions can be baked into this network.

    Raises:
        UsageError: the precision is INT8, or a masked layer shares its weight with one that is masked otherwise.
        ArtifactError: the network has no convolution of a mask's name.
    """
    if not masks.positions:
        return
    torch: Any = require("torch", needed_for="exporting to ONNX")
    refuse_precision(masks, options)
    modules = dict(model.named_modules())
    for name in masks.positions:
        module = modules.get(name)
        if not isinstance(module, torch.nn.Conv2d):
            found = "no module" if module is None else f"a {type(module).__name__}"
            raise ArtifactError(
                f"position mask of {name}: the model has {found} of that name, not a Conv2d; the masks were made for another "
                "model: run 'masksparse learn' again"
            )
        # The graph tells layers by their weights
        for other, twin in modules.items():
            if other != name and getattr(twin, "weight", None) is module.weight:
                raise UsageError(
                    f"position mask of {name}: {other} shares its weight, and an ONNX file does not tell the two apart; leave "
                    f"'{name}' and '{other}' out with mask.exclude"
                )


def refuse_precision(masks: MaskSet, options: BakeOptions) -> None:
    """Refuse INT8: the quantizer knows no scale for a Where, and dropped positions have no INT8 form yet."""
    if masks.positions and options.precision == "int8":
        raise UsageError(
            f"bake.precision int8 is not for masked positions, and {len(masks.positions)} layers have some; use fp32, fp16 or "
            "bf16, or learn without mask.position_rate"
        )
