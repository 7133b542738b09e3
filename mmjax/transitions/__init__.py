"""Pure functions from the parameters of one stage to those of the next, and the manifest of where each came from."""

from mmjax.transitions.apply import TRANSITIONS, Transition, apply, plan
from mmjax.transitions.manifest import Entry, Manifest

__all__ = ["TRANSITIONS", "Entry", "Manifest", "Transition", "apply", "plan"]
