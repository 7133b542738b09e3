"""What every transition says of itself.

A transition is a function and what is said of it, in a `Transition` that its file lists as TRANSITIONS; files are found by listing this
folder.
"""

import dataclasses
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

from mmjax.base.registry import modules_of
from mmjax.models.config import VLMConfig
from mmjax.transitions.manifest import Entry
from mmjax.typing import Array, Params

Apply = Callable[[Params, VLMConfig, VLMConfig, Array], tuple[Params, list[Entry]]]
"""(parameters, model of the stage before, model of this stage, key) -> (parameters, what it touched). Pure, also under jax.jit."""


@dataclasses.dataclass(frozen=True)
class Difference:
    """How the parameters after all transitions differ from those of the new model, by path.

    Attributes:
        missing: paths that the model has and the parameters lack; unexpected: the other way round; misshapen: arrays of another shape.
        model: of the stage that begins.
        names: of the stage's transitions.
    """

    missing: Collection[str]
    unexpected: Collection[str]
    misshapen: Collection[str]
    model: VLMConfig
    names: tuple[str, ...]

    @property
    def paths(self) -> set[str]:
        """All of them."""
        return {*self.missing, *self.unexpected, *self.misshapen}


def no_hints(difference: Difference) -> Iterable[str]:
    """The hints of a transition that explains no difference."""
    return ()


@dataclasses.dataclass(frozen=True)
class Transition:
    """A named function from the parameters of one stage to those of the next.

    Attributes:
        apply: see `Apply`. It raises InputError where it cannot be done.
        hints: a sentence for each difference that this transition would have made good, or has made and the recipe does not provide for.
            It looks at `names` to know whether it was applied.
    """

    name: str
    apply: Apply
    hints: Callable[[Difference], Iterable[str]] = no_hints


def transitions() -> Mapping[str, Transition]:
    """All of them, by name."""
    listed = (getattr(module, "TRANSITIONS", ()) for module in modules_of("mmjax.transitions"))
    return {transition.name: transition for found in listed for transition in found}


def beginning(paths: Iterable[str], *prefixes: str) -> Iterator[str]:
    """Those of the paths that begin so."""
    return (path for path in paths if path.startswith(prefixes))
