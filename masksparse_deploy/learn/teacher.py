"""The dense network as the teacher of the masked one: a copy that only ever answers, made faster where that is safe."""

import copy

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

__all__ = ["teacher_copy"]

# Folding changes float32 answers in their last places, by 1e-6 or so; wrong ones differ by far more.
_TOLERANCE = 1e-3


def teacher_copy(model: nn.Module, images: torch.Tensor) -> nn.Module:
    """A copy of the network with batch norms folded into the convolutions before them, where it can be followed.

    Args:
        model: in evaluation mode; not changed.
        images: float32 (count, channels, height, width), on which the copy must give the network's answers; where it does not,
            where the network's code cannot be traced, or where it has hooks, it is a plain copy. The copy is where they are.
    """
    # Before tracing, which writes devices that the network's code asks for into the trace.
    plain = copy.deepcopy(model).to(images.device)
    # Tracing leaves out the network's own hooks, and folding those of batch norms.
    if any(module._forward_hooks or module._forward_pre_hooks for module in model.modules()):
        return plain
    with torch.no_grad():
        expected = plain(images)
        try:
            folded = fx.symbolic_trace(copy.deepcopy(plain))
            _fold(folded)
            difference = (folded(images) - expected).abs().max()
        except Exception:  # the user's forward may fail in any way on what is no tensor, and so may what was traced of it
            return plain
    return folded if bool(difference <= _TOLERANCE * expected.abs().max()) else plain


def _fold(network: fx.GraphModule) -> None:
    modules: dict[object, nn.Module] = dict(network.named_modules())
    calls = [node for node in network.graph.nodes if node.op == "call_module"]
    targets = [node.target for node in calls]
    for node in calls:
        norm, source = modules[node.target], node.args[0] if node.args else None
        # In training mode, where a network's code keeps one there, it answers with the statistics of the batch.
        if not isinstance(norm, _BatchNorm) or norm.training or norm.running_mean is None or source not in calls:
            continue
        assert isinstance(source, fx.Node)
        convolution = modules[source.target]
        # A convolution that is called twice, or whose output is used elsewhere too, must stay as it is.
        if type(convolution) is nn.Conv2d and len(source.users) == 1 and targets.count(source.target) == 1:
            network.set_submodule(str(source.target), fuse_conv_bn_eval(convolution, norm))
            node.replace_all_uses_with(source)
            network.graph.erase_node(node)
    network.delete_all_unused_submodules()
    network.recompile()
