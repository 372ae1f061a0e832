"""Whether the options about positions and those about weights go together."""

from masksparse_deploy.core.config import MaskOptions
from masksparse_deploy.core.errors import UsageError

__all__ = ["check_position_options"]

_TRAINING = ("positions", "sparse-training", "subp", "blocks")
# What says how weights are masked, which the method positions does not do.
_OF_WEIGHTS = ("pattern", "pad_channels", "permute", "assignment")


def check_position_options(options: MaskOptions) -> None:
    """Refuse options that cannot be met.

    Raises:
        UsageError: positions shall be left out of a network whose weights stay frozen, the method "positions" has no rate, or
            comes with options for masks of weights.
    """
    method, rate = options.method, options.position_rate
    if rate > 0 and method not in _TRAINING:
        raise UsageError(
            f"mask.position_rate {rate:g} leaves output positions out, for which the weights must train, and method {method!r} "
            f"keeps them; use {', '.join(_TRAINING[:-1])} or {_TRAINING[-1]}, or mask.position_rate: 0"
        )
    if method != "positions":
        return
    if rate == 0:
        raise UsageError(
            "method 'positions' leaves output positions out, and mask.position_rate is 0; set the share of them that is not "
            "computed, as mask.position_rate: 0.2"
        )
    for name in _OF_WEIGHTS:
        value = getattr(options, name)
        if value != MaskOptions.model_fields[name].default:
            raise UsageError(
                f"mask.{name} {value} is about masks of weights, and method 'positions' masks none; remove it, or use "
                "sparse-training, subp or blocks, which mask weights too, with mask.position_rate"
            )
