"""What every connector says of itself.

A connector is one file in this folder: a config (a frozen dataclass derived from `ConnectorConfig`) and the module that it builds. Nothing
outside the folder knows which kinds there are. This file imports no jax, because reading a recipe imports it.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar, Protocol, runtime_checkable

from mmjax.base.registry import Component
from mmjax.errors import InputError


@runtime_checkable
class Encoder(Protocol):
    """What a connector knows of the encoder whose features it reads; see `ViTConfig`."""

    @property
    def image_size(self) -> int: ...
    @property
    def patch_size(self) -> int: ...
    @property
    def grid(self) -> int: ...
    @property
    def patches(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def class_token(self) -> bool: ...
    @property
    def final_norm(self) -> bool: ...


@runtime_checkable
class FlopCounter(Protocol):
    """Follows a forward pass and counts its products. `needs_gradient` says whether an activation depends on something that is trained;
    each method returns whether its result does. Rules: `mmjax.training.flops`."""

    def trains(self, path: str) -> bool:
        """Whether a parameter at or below `path` is trained."""
        ...

    def linear(self, path: str, rows: int, needs_gradient: bool) -> bool:
        """A linear map of `rows` vectors."""
        ...

    def attention(
        self, queries: int, keys: float, width: int, needs_gradient: tuple[bool, bool, bool]
    ) -> bool:
        """Attention of so many queries over so many keys; `width`: heads x head dimension; the flags: of queries, keys and values."""
        ...


@dataclasses.dataclass(frozen=True)
class Growth:
    """How one block of a connector's parameters grows out of one of the stage before (transition `inflate`).

    Attributes:
        source, target: where the block's parameters lie before and after: paths below "connector/", such as "scales/0/".
        tiled: names below these of the arrays [side^2 * t, D] that are repeated; all others are copied.
        side: windows per side before; factor: windows per side after for each of those.
        note, tiled_note: what the manifest says of copied and of repeated arrays.
    """

    source: str
    target: str
    tiled: tuple[str, ...]
    side: int
    factor: int
    note: str
    tiled_note: str


@dataclasses.dataclass(frozen=True, eq=False)
class AttentionMap:
    """Where the queries of a connector look.

    Attributes:
        window: patches per side of a window.
        weights: [layers, queries per window, P, P], mean over the heads: map q shows query q of every window in the window's place.
    """

    window: int
    weights: Any


@dataclasses.dataclass(frozen=True)
class PatchMLP:
    """A connector that is nothing but down(activation(up(x))) of every patch x, with biases: that of LLaVA (arXiv:2310.03744). Its
    parameters lie at "connector/up" and "connector/down".

    Attributes:
        feature_layer: the only encoder output that it reads.
        activation: a name of `mmjax.models.config.Activation`.
    """

    feature_layer: int
    hidden_width: int
    activation: str


class ConnectorConfig(Component):
    """What stands between the vision encoder and the decoder.

    Attributes:
        kind: its name in a config, of the type Literal["name"].
        feature_layers: the encoder outputs that it reads, earliest first: k means after k blocks.
        class_token: whether features have the encoder's class token in front.
        final_norm: whether features are read through the norm that the encoder ends in.
        inflatable: where the parameters lie that `inflate` grows: paths below "connector/".
        not_of_the_function: settings that say how fresh numbers are drawn or where they come from, and nothing of what is computed.
    """

    package: ClassVar[str] = "mmjax.models.connectors"

    kind: str
    feature_layers: tuple[int, ...]
    class_token: bool = False
    final_norm: bool = False
    inflatable: ClassVar[tuple[str, ...]] = ()
    not_of_the_function: ClassVar[tuple[str, ...]] = ("weight_std",)

    def visual_tokens(self, vision: Encoder) -> int:
        """L: visual tokens per image."""
        raise NotImplementedError(f"{type(self).__name__}.visual_tokens")

    def build(self, vision: Encoder, output_width: int, *, dtype: Any, rngs: Any) -> Any:
        """The module: a tuple of features [B, P, D], one for each of `feature_layers`, to visual tokens [B, L, output_width].

        P is the number of patches, and one more in front with `class_token`. Parameters are made with logical axes (`nnx.Param(value,
        axes=...)`, names in `mmjax.distributed.mesh`); most come from `mmjax.models.layers`.
        """
        raise NotImplementedError(f"{type(self).__name__}.build")

    def problems(self, path: str, vision: Encoder, *, first_stage: bool) -> Iterator[str]:
        """What of the settings cannot be: a sentence each, without its full stop, that begins with the setting; `path` is that of the
        connector in the config. `feature_layers` are checked against the encoder already. first_stage: no stage comes before."""
        yield from ()

    def count_flops(
        self, counter: FlopCounter, vision: Encoder, images: int, needs_gradient: bool
    ) -> bool:
        """Counts the products for so many images; `needs_gradient`: of the features. Returns whether the visual tokens need a gradient.
        Parameter paths begin with "connector/"."""
        raise NotImplementedError(f"{type(self).__name__}.count_flops")

    def activation_elements(self, vision: Encoder, output_width: int) -> int:
        """Estimated numbers per image that are kept for the backward pass."""
        raise NotImplementedError(f"{type(self).__name__}.activation_elements")

    def head_counts(self) -> dict[str, int]:
        """Every number of attention heads, by the setting that it comes from: a mesh must divide them."""
        return {}

    def growth(
        self, before: "ConnectorConfig", old_vision: Encoder, vision: Encoder
    ) -> tuple[Growth, ...]:
        """How the parameters at `inflatable` grow out of those of the connector of the stage before.

        Raises:
            InputError: this kind does not grow, or not from that.
        """
        raise InputError(f"inflate cannot grow a connector of kind {self.kind!r}.")

    def reinterpretations(
        self, before: "ConnectorConfig", old_vision: Encoder, vision: Encoder, *, inflated: bool
    ) -> Iterator[str]:
        """Where parameters of the stage before keep their shape but would mean something else: a sentence each. inflated: `inflate` is
        among the transitions."""
        yield from ()

    def as_patch_mlp(self) -> PatchMLP | None:
        """The connector as other tools have it, if it is one that they have."""
        return None

    def attention_maps(self, connector: Any, features: tuple[Any, ...]) -> list[AttentionMap]:
        """Where the queries of the built module look, for the features of one image; nothing for a connector without queries."""
        return []
