"""Pure functions from the parameters of one stage to those of the next, and the manifest of where each came from."""

from mmjax.transitions.apply import apply, plan
from mmjax.transitions.base import Transition, transitions
from mmjax.transitions.manifest import Entry, Manifest

__all__ = ["Entry", "Manifest", "Transition", "apply", "plan", "transitions"]
