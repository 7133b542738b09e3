"""Floating-point operations of a training step, counted from the shapes of its matrix products.

Rules. A product [m, k] @ [k, n] is 2 m k n operations; nothing else counts (norms, softmax, activations, look-ups, the optimizer), and what
rematerialisation computes again does not count either. For a linear map of m rows:

    forward               2 m k n
    weight gradient       2 m k n   if its kernel is trained
    activation gradient   2 m k n   if anything before it is trained
    low-rank update       forward 2 m r (k + n); weight gradients 2 m r k and 2 m r n; activation gradients 2 m r n and 2 m r k

For attention of Tq queries over Tk keys, where A is heads x head dimension: forward 2 x (2 Tq Tk A), and backward 2 Tq Tk A for each of
the gradients of values, of scores, of queries and of keys that something trained needs. In the decoder each of these is halved, because
attention is causal, the visual tokens included; the packing of a row into segments is not deducted. A resampler's queries see the patches
of their window only. Rows count as they are computed, padding included: T = text_length + I L tokens go through the decoder, text_length
positions through the head.

So a frozen part with nothing trained before it costs its forward pass alone, and one with something trained before it has no weight
gradient.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax

from mmjax.base.devices import of_kind
from mmjax.models import parameters
from mmjax.models.config import VLMConfig
from mmjax.recipe.recipe import Stage

MFU_FORMULA = (
    "MFU = (forward + backward FLOPs of the matrix products of a step) / (seconds per step x devices x peak FLOP/s of a device); a product "
    "[m, k] @ [k, n] is 2mkn, causal attention is halved, frozen parts have no weight gradient, rematerialisation is not counted"
)


@dataclasses.dataclass(frozen=True)
class PartFlops:
    """FLOPs of one part of the model for one row.

    Attributes:
        attention: how many of these are products of queries, keys and values, over forward and backward.
    """

    forward: float = 0.0
    weight_gradient: float = 0.0
    activation_gradient: float = 0.0
    attention: float = 0.0

    @property
    def backward(self) -> float:
        return self.weight_gradient + self.activation_gradient

    @property
    def total(self) -> float:
        return self.forward + self.backward

    def __add__(self, other: "PartFlops") -> "PartFlops":
        return PartFlops(
            *(
                getattr(self, field.name) + getattr(other, field.name)
                for field in dataclasses.fields(self)
            )
        )


@dataclasses.dataclass(frozen=True)
class StepFlops:
    """FLOPs of a training step.

    Attributes:
        parts: for one row: "vision", "connector", "decoder", "lm_head".
        rows: of the global batch.
    """

    parts: Mapping[str, PartFlops]
    rows: int

    @property
    def row(self) -> PartFlops:
        """All parts, for one row."""
        return sum(self.parts.values(), start=PartFlops())

    @property
    def total(self) -> float:
        """Forward and backward, for the whole step."""
        return self.row.total * self.rows

    def table(self) -> str:
        """GFLOPs per row by part, as text."""
        lines = [
            f"{'GFLOPs per row':<16}{'forward':>12}{'weights':>12}{'activations':>13}{'total':>12}"
        ]
        for name, part in (*self.parts.items(), ("all", self.row)):
            forward, weights, activations, total = (
                value / 1e9 for value in (*dataclasses.astuple(part)[:3], part.total)
            )
            lines.append(
                f"{name:<16}{forward:>12.3f}{weights:>12.3f}{activations:>13.3f}{total:>12.3f}"
            )
        return "\n".join(lines)


def step_flops(model: VLMConfig, stage: Stage) -> StepFlops:
    """FLOPs of a step of `stage` with `model`, by the rules of this module."""
    counter = _Counter(model, stage.trainable)
    images = stage.data.images_per_row
    visual = images * model.visual_tokens
    tokens = stage.data.text_length + visual
    features = _vision(counter, model, images)
    counter.part = "connector"
    visual_tokens = model.connector.count_flops(counter, model.vision, images, features)
    embeddings = visual_tokens | counter.trains("decoder/embedding")
    hidden = _decoder(counter, model, tokens, embeddings)
    counter.part = "lm_head"
    counter.linear(
        "decoder/embedding" if model.decoder.tie_word_embeddings else "decoder/lm_head",
        stage.data.text_length,
        hidden,
    )
    return StepFlops(counter.parts, stage.batch_size)


class _Counter:
    """Follows a forward pass. `needs` says whether an activation depends on a trained parameter, and so has a gradient."""

    def __init__(self, model: VLMConfig, trainable: tuple[str, ...]):
        self.shapes = {path: leaf.shape for path, leaf in parameters.abstract(model)[1].items()}
        self.trained = {path for path in self.shapes if parameters.matches(path, trainable)}
        self.parts: dict[str, PartFlops] = {}
        self.part = ""
        self.repeat = 1  # how many equal layers the calls stand for

    def trains(self, path: str) -> bool:
        """Whether a parameter at or below `path` is trained."""
        return any(name == path or name.startswith(f"{path}/") for name in self.trained)

    def linear(self, path: str, rows: int, needs: bool) -> bool:
        """Counts one linear map; returns whether its output needs a gradient."""
        kernel = path if path in self.shapes else f"{path}/kernel"
        assert kernel in self.shapes, (
            f"count_flops names {path}; the model has {', '.join(sorted(self.shapes))}"
        )
        size = 2.0 * rows * self.shapes[kernel][-2] * self.shapes[kernel][-1]
        self._add(size, size * (kernel in self.trained), size * needs)
        if f"{path}/lora_a" in self.shapes:
            down, up = (
                2.0 * rows * self.shapes[f"{path}/{name}"][-2] * self.shapes[f"{path}/{name}"][-1]
                for name in ("lora_a", "lora_b")
            )
            a, b = f"{path}/lora_a" in self.trained, f"{path}/lora_b" in self.trained
            self._add(down + up, down * a + up * b, up * (a or needs) + down * needs)
        return needs or self.trains(path)

    def attention(
        self, queries: int, keys: float, width: int, needs: tuple[bool, bool, bool]
    ) -> bool:
        """Counts the products of attention, given which of queries, keys and values need a gradient."""
        product = 2.0 * queries * keys * width
        query, key, value = needs
        self._add(
            2 * product, 0.0, product * ((query or key) + query + key + value), attention=True
        )
        return any(needs)

    def layers(self, count: int, layer: Callable[[bool], bool], needs: bool) -> bool:
        """Counts equal layers on end: from the second on, a layer stands behind everything that is trained in the first."""
        for repeat in (1, count - 1):
            self.repeat = repeat
            needs = layer(needs) if repeat else needs
        self.repeat = 1
        return needs

    def _add(
        self, forward: float, weights: float, activations: float, attention: bool = False
    ) -> None:
        forward, weights, activations = (
            self.repeat * value for value in (forward, weights, activations)
        )
        added = PartFlops(
            forward, weights, activations, forward + activations if attention else 0.0
        )
        self.parts[self.part] = self.parts.get(self.part, PartFlops()) + added


def _vision(counter: _Counter, model: VLMConfig, images: int) -> bool:
    config = model.vision
    counter.part = "vision"
    tokens = config.patches + config.class_token
    rows = images * tokens
    counter.linear("vision/patch", images * config.patches, False)
    needs = any(
        counter.trains(f"vision/{name}")
        for name in ("patch", "class_token", "position", "embedding_norm")
    )

    def block(path: str, needs: bool) -> bool:
        normed = needs or counter.trains(f"{path}/norm_attention")
        query, key, value = (
            counter.linear(f"{path}/attention/{name}", rows, normed)
            for name in ("query", "key", "value")
        )
        mixed = counter.attention(rows, tokens, config.width, (query, key, value))
        needs = counter.linear(f"{path}/attention/output", rows, mixed) or needs
        normed = needs or counter.trains(f"{path}/norm_mlp")
        inner = [
            counter.linear(f"{path}/mlp/{name}", rows, normed)
            for name in (("gate", "up") if config.gated_mlp else ("up",))
        ]
        return counter.linear(f"{path}/mlp/down", rows, any(inner)) or needs

    read = max(model.connector.feature_layers)
    for layer_range in config.layer_ranges:
        count = min(read, layer_range.stop) - layer_range.start
        needs = (
            counter.layers(count, functools.partial(block, f"vision/{layer_range.path}"), needs)
            if count > 0
            else needs
        )
    return needs or (model.connector.final_norm and counter.trains("vision/final_norm"))


def _decoder(counter: _Counter, model: VLMConfig, tokens: int, needs: bool) -> bool:
    config = model.decoder
    counter.part = "decoder"

    def block(path: str, needs: bool) -> bool:
        normed = needs or counter.trains(f"{path}/norm_attention")
        query, key, value = (
            counter.linear(f"{path}/attention/{name}", tokens, normed)
            for name in ("query", "key", "value")
        )
        mixed = counter.attention(
            tokens, tokens / 2, config.heads * config.head_dim, (query, key, value)
        )
        needs = counter.linear(f"{path}/attention/output", tokens, mixed) or needs
        normed = needs or counter.trains(f"{path}/norm_mlp")
        rows = tokens * (config.experts_per_token if config.experts else 1)
        if config.experts:
            counter.linear(f"{path}/mlp/router", tokens, normed)
        inner = [counter.linear(f"{path}/mlp/{name}", rows, normed) for name in ("gate", "up")]
        return counter.linear(f"{path}/mlp/down", rows, any(inner)) or needs

    for layer_range in config.layer_ranges:
        needs = counter.layers(
            layer_range.size, functools.partial(block, f"decoder/{layer_range.path}"), needs
        )
    return needs or counter.trains("decoder/norm")


def peak_flops(device: jax.Device) -> float | None:
    """FLOP/s that MFU is measured against: of `base.devices`. None: it is not known; the config can say it (`logging.peak_flops`).

    Of a CPU it is never known. One that is measured, by a matrix product beside the run, is no peak: it falls with the load that the run
    itself makes, so that MFU came out as 86 % or 131 %."""
    known = None if device.platform == "cpu" else of_kind(device.device_kind)
    return None if known is None else known.flops


def mfu(flops: float, seconds: float, devices: int, peak: float) -> float:
    """Model FLOPs utilisation, `MFU_FORMULA`.

    Args:
        flops: `StepFlops.total`; seconds: of one step; peak: FLOP/s of one of the devices.
    """
    return flops / (seconds * devices * peak)
