"""Learning masks for a trained network with a training loop of one's own."""

from masksparse_deploy.learn.attach import AttachedMasks, attach_masks

__all__ = ["AttachedMasks", "attach_masks"]
