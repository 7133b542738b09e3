"""What a recipe's settings must agree on, checked before any device is touched. All contradictions are reported at once."""

import dataclasses
import itertools
from collections.abc import Collection, Iterable, Iterator

from mmjax import transitions
from mmjax.data.templates import CHAT
from mmjax.errors import InputError
from mmjax.evaluation import tasks
from mmjax.initial_weights import parts_of
from mmjax.kernels.attention import IMPLEMENTATIONS
from mmjax.models import parameters
from mmjax.models.config import ConnectorConfig, DecoderConfig, LinearConfig, MLPConfig, ResamplerConfig, ViTConfig
from mmjax.recipe import RANDOM, DataConfig, OptimizerConfig, Recipe, Stage
from mmjax.schema import suggestion
from mmjax.training import sharding, trackers
from mmjax.transitions import surrogate
from mmjax.vocabulary import with_vocabulary

Problems = Iterator[str]

_ANY = 8  # tokens of a vocabulary that is not known yet: no rule depends on it


def check(recipe: Recipe, *, partial: bool = False, shared_sources: Collection[str] = ()) -> None:
    """Checks a recipe; `partial`: texts that the user still has to give may be empty; `shared_sources`: those that the config names once
    for all stages.

    Raises:
        InputError: with one line for each contradiction.
    """
    stages = list(recipe.stages.values())
    # Each round looks at what makes sense only when nothing before it is wrong: numbers, the parameters they make, and how those change.
    rounds = (
        lambda: _recipe(recipe, partial, shared_sources),
        lambda: itertools.chain.from_iterable(map(_parameters, stages)),
        lambda: itertools.chain.from_iterable(map(_change, [None, *stages], stages)),
    )
    for find in rounds:
        if problems := list(find()):
            raise InputError("\n".join(problems))


def _recipe(recipe: Recipe, partial: bool, shared_sources: Collection[str]) -> Problems:
    for stage in recipe.stages.values():
        yield from _stage(stage, partial)
    if not partial:
        yield from dict.fromkeys(_missing(recipe, shared_sources))
    if recipe.tokenizer.kind == "words" and recipe.tokenizer.path:
        yield "config.tokenizer.path: a tokenizer of words is built from the training text; --config.tokenizer.kind=huggingface reads one."
    if recipe.tokenizer.kind == "words":
        for stage in recipe.stages.values():
            if stage.data.template == CHAT:
                yield (
                    f"config.stages.{stage.name}.data.template is {CHAT!r}, a published tokenizer's own; a tokenizer of words has none. "
                    "--config.tokenizer.kind=huggingface reads one."
                )
    yield from _names("config.evaluation.tasks", recipe.evaluation.tasks, tasks.TASKS)
    yield from _names("config.logging.trackers", recipe.logging.trackers, trackers.TRACKERS)
    if recipe.kernels.attention is not None:
        yield from _names("config.kernels.attention", [recipe.kernels.attention], IMPLEMENTATIONS)
    for name in dict.fromkeys(recipe.evaluation.tasks):
        if name in tasks.TASKS:
            yield from tasks.TASKS[name].problems(recipe)
    yield from _positive("config.evaluation", recipe.evaluation, "batch_size", "max_new_tokens", "max_caption_tokens")
    yield from _positive("config.checkpoint", recipe.checkpoint, "every", "keep_last")
    yield from _positive("config.logging", recipe.logging, "every")
    if recipe.logging.evaluate_every < 0:
        yield f"config.logging.evaluate_every is {recipe.logging.evaluate_every}; it is 0 (only at the end of a stage) or more."
    if recipe.logging.hang_timeout < 0:
        yield f"config.logging.hang_timeout is {recipe.logging.hang_timeout}; it is 0 (no watching) or more."
    if recipe.evaluation.limit is not None and recipe.evaluation.limit < 1:
        yield f"config.evaluation.limit is {recipe.evaluation.limit}; it is at least 1, or none."
    if recipe.logging.peak_flops is not None and recipe.logging.peak_flops <= 0:
        yield f"config.logging.peak_flops is {recipe.logging.peak_flops}; it is positive, or none (known devices are looked up)."
    try:
        sharding.check_axes(recipe.mesh)
    except InputError as error:
        yield f"config.{error}"
    if recipe.seed < 0:
        yield f"config.seed is {recipe.seed}; it must not be negative."


def _stage(stage: Stage, partial: bool) -> Problems:
    path = f"config.stages.{stage.name}"
    yield from _positive(path, stage, "steps", "batch_size", "micro_batches")
    if stage.micro_batches > 0 and stage.batch_size % stage.micro_batches:
        yield f"{path}.batch_size is {stage.batch_size}, which micro_batches = {stage.micro_batches} does not divide."
    yield from _names(f"{path}.transitions", stage.transitions, transitions.TRANSITIONS)
    yield from _names(f"{path}.weights", stage.weights, ("model", "vision", "connector", "decoder"))
    for part, weights in stage.weights.items():
        if not weights and not partial:
            yield _give(f"{path}.weights.{part}", f"a folder or a file (or {RANDOM!r} to measure without)")
    yield from _vision(f"{path}.model.vision", stage.model.vision)
    yield from _connector(f"{path}.model.connector", stage.model.connector, stage.model.vision)
    read = max(stage.model.connector.feature_layers, default=0)
    if 0 < read < stage.model.vision.layers:
        yield f"{path}.model.vision.layers is {stage.model.vision.layers}, but the connector reads none after block {read}; say {read}."
    yield from _decoder(f"{path}.model.decoder", stage.model.decoder)
    if stage.model.lora.alpha <= 0:
        yield f"{path}.model.lora.alpha is {stage.model.lora.alpha}; it must be positive (updates are scaled by alpha / rank)."
    if stage.model.lora.rank < 0:
        yield f"{path}.model.lora.rank is {stage.model.lora.rank}; it is 0 (no low-rank updates) or more."
    yield from _positive(f"{path}.model", stage.model, "unroll")
    yield from _data(f"{path}.data", stage.data)
    yield from _optimizer(f"{path}.optimizer", stage.optimizer)
    if stage.optimizer.schedule == "cosine_over_all" and 0 < stage.steps < stage.optimizer.warmup_steps + 4:
        yield (
            f"{path}.optimizer.schedule is 'cosine_over_all', whose last two updates are zero: steps = {stage.steps} with warmup_steps = "
            f"{stage.optimizer.warmup_steps} leave next to nothing. Take {stage.optimizer.warmup_steps + 4} steps or more, a shorter "
            "warm-up, or 'cosine'."
        )


def _vision(path: str, vision: ViTConfig) -> Problems:
    yield from _positive(path, vision, "image_size", "patch_size", "width", "layers", "heads", "mlp_width")
    if min(vision.patch_size, vision.heads) < 1:
        return
    if vision.image_size % vision.patch_size:
        low = vision.image_size // vision.patch_size * vision.patch_size
        yield (
            f"{path}.image_size is {vision.image_size}, which is no whole number of patches of {vision.patch_size} pixels; "
            f"{low or vision.patch_size} and {low + vision.patch_size} are."
        )
    if not 0 <= vision.late <= vision.layers:
        yield f"{path}.late is {vision.late}; it is a number of blocks, from 0 to layers = {vision.layers}."
    if vision.width % vision.heads:
        yield f"{path}.width is {vision.width}, which heads = {vision.heads} does not divide."


def _connector(path: str, connector: ConnectorConfig, vision: ViTConfig) -> Problems:
    if not connector.feature_layers:
        yield f"{path}.feature_layers is empty; it names the encoder blocks whose output is read."
    for layer in connector.feature_layers:
        if not 1 <= layer <= vision.layers:
            yield f"{path}.feature_layers has {layer}, but the encoder has blocks 1 to {vision.layers}."
    if list(connector.feature_layers) != sorted(connector.feature_layers):
        yield f"{path}.feature_layers is {connector.feature_layers}; blocks are read in the order in which they run, the earliest first."
    if isinstance(connector, LinearConfig | MLPConfig) and len(connector.feature_layers) > 1:
        yield f"{path}.feature_layers is {connector.feature_layers}; the {connector.kind} connector reads one."
    if isinstance(connector, MLPConfig):
        yield from _positive(path, connector, "hidden_width")
        if connector.class_token and not vision.class_token:
            yield f"{path}.class_token is true, but the encoder has none (vision.class_token)."
        if connector.final_norm and not vision.final_norm:
            yield f"{path}.final_norm is true, but the encoder ends in none (vision.final_norm)."
    if isinstance(connector, ResamplerConfig):
        yield from _positive(path, connector, "width", "head_dim", "mlp_width")
        if connector.width != vision.width:
            yield f"{path}.width is {connector.width}, but the features it reads have vision.width = {vision.width}; they must be equal."
        if connector.head_dim > 0 and connector.width % connector.head_dim:
            yield f"{path}.width is {connector.width}, which head_dim = {connector.head_dim} does not divide."
        yield from _scales(path, connector, vision)


def _scales(path: str, connector: ResamplerConfig, vision: ViTConfig) -> Problems:
    windows, queries = connector.windows, connector.queries
    if len(windows) != len(queries) or not windows:
        yield f"{path}.windows has {len(windows)} scales and queries {len(queries)}; there must be as many, and at least one."
        return
    if list(windows) != sorted(windows, reverse=True):
        yield f"{path}.windows is {windows}; scales stand from coarse to fine, the largest window first."
    if vision.patch_size < 1 or vision.image_size % vision.patch_size:
        return
    for window, count in zip(windows, queries, strict=True):
        if window < 1 or vision.grid % window:
            sides = [side for side in range(1, vision.grid + 1) if vision.grid % side == 0]
            yield (
                f"{path}.windows: windows of {window} x {window} patches do not tile the grid of {vision.grid} x {vision.grid} "
                f"({vision.image_size} pixels in patches of {vision.patch_size}); the side must be one of {', '.join(map(str, sides))}."
            )
        elif count < 1 or count % (vision.grid // window) ** 2:
            number = (vision.grid // window) ** 2
            yield f"{path}.queries: {count} queries do not divide evenly over {number} windows of side {window}; {number} do."


def _decoder(path: str, decoder: DecoderConfig) -> Problems:
    yield from _positive(path, decoder, "width", "layers", "heads", "kv_heads", "head_dim", "mlp_width")
    if decoder.kv_heads > 0 and decoder.heads % decoder.kv_heads:
        yield f"{path}.heads is {decoder.heads}, which kv_heads = {decoder.kv_heads} does not divide."
    if decoder.head_dim % 2:
        yield f"{path}.head_dim is {decoder.head_dim}; rotary positions need an even number."
    if decoder.experts < 0 or (decoder.experts and not 0 < decoder.experts_per_token <= decoder.experts):
        yield f"{path}: {decoder.experts_per_token} of {decoder.experts} experts cannot be chosen for a token (experts, experts_per_token)."
    if decoder.experts and decoder.mlp_bias:
        yield f"{path}.mlp_bias is true, but experts have no biases."
    if decoder.sliding_window is not None and decoder.sliding_window < 1:
        yield f"{path}.sliding_window is {decoder.sliding_window}; it is a number of tokens, or none."
    yield from (f"{path}.{problem}." for problem in surrogate.problems(decoder))
    if decoder.vocabulary < 0:
        yield f"{path}.vocabulary is {decoder.vocabulary}; it is 0 (as many as the tokenizer needs) or more."


def _data(path: str, data: DataConfig) -> Problems:
    if not data.sources:
        yield f"{path}.sources is empty; a stage reads at least one."
    for name, source in data.sources.items():
        if source.weight <= 0:
            yield f"{path}.sources.{name}.weight is {source.weight}; it must be positive."
    yield from _positive(path, data, "text_length")
    for name in ("images_per_row", "holdout", "workers"):
        if getattr(data, name) < 0:
            yield f"{path}.{name} is {getattr(data, name)}; it must not be negative."
    if not 0 <= data.skip_budget <= 1:
        yield f"{path}.skip_budget is {data.skip_budget}; it is a share between 0 and 1."


def _optimizer(path: str, optimizer: OptimizerConfig) -> Problems:
    yield from _positive(path, optimizer, "learning_rate", "epsilon")
    for name in ("beta1", "beta2"):
        if not 0 <= getattr(optimizer, name) < 1:
            yield f"{path}.{name} is {getattr(optimizer, name)}; it is at least 0 and below 1."
    for name in ("weight_decay", "final_scale", "warmup_steps"):
        if getattr(optimizer, name) < 0:
            yield f"{path}.{name} is {getattr(optimizer, name)}; it must not be negative."
    if optimizer.clip_norm is not None and optimizer.clip_norm <= 0:
        yield f"{path}.clip_norm is {optimizer.clip_norm}; it is positive, or none for no clipping."


def _change(before: Stage | None, stage: Stage) -> Problems:
    """What one stage's model hands to the next."""
    path = f"config.stages.{stage.name}"
    if before is None:
        if stage.transitions:
            yield f"{path}.transitions is {stage.transitions}, but this is the first stage: there are no parameters to change yet."
        if isinstance(stage.model.connector, ResamplerConfig) and stage.model.connector.parents:
            yield f"{path}.model.connector.parents is {stage.model.connector.parents}, but the first stage has no scales to grow from."
        return
    try:
        old, new = (with_vocabulary(one.model, one.model.decoder.vocabulary or _ANY) for one in (before, stage))
        transitions.plan(stage.transitions, old, new, stage=stage.name, loaded=parts_of(stage.weights))
    except InputError as error:
        yield f"config, {error}"


def _missing(recipe: Recipe, shared_sources: Collection[str]) -> Problems:
    """Paths that the config file leaves to the user."""
    for stage in recipe.stages.values():
        for name, source in stage.data.sources.items():
            for field in dataclasses.fields(source):
                if field.default is dataclasses.MISSING and getattr(source, field.name) == "":
                    stages = "" if name in shared_sources else f"stages.{stage.name}."
                    yield _give(f"config.{stages}data.sources.{name}.{field.name}")
    if recipe.tokenizer.kind == "huggingface" and not recipe.tokenizer.path:
        yield _give("config.tokenizer.path", "a tokenizer file, a GGUF file, or the folder of one")


def _give(path: str, what: str = "") -> str:
    return f"{path} has no value yet; give {what or 'one'} with --{path}=..."


def _parameters(stage: Stage) -> Problems:
    """Globs that match nothing: most often a misspelt path, and a part of the model that stays frozen unnoticed."""
    path = f"config.stages.{stage.name}"
    model = with_vocabulary(stage.model, stage.model.decoder.vocabulary or _ANY)
    try:
        paths = list(parameters.abstract(model)[1])
    except ValueError as error:  # the model cannot be built from its config: a glob of LoRA that matches nothing, for one
        yield f"{path}.model: {error}"
        return
    trained = [name for name in paths if parameters.matches(name, stage.trainable)]
    for glob in stage.trainable:
        if not any(parameters.matches(name, (glob,)) for name in paths):
            yield f"{path}.trainable: {glob!r} matches no parameter. {_examples(glob, paths)}"
    if not stage.trainable:
        yield f"{path}.trainable is empty: nothing would be trained."
    for group in stage.optimizer.groups:
        if not any(parameters.matches(name, (group.match,)) for name in trained):
            yield f"{path}.optimizer.groups: {group.match!r} matches no trained parameter. {_examples(group.match, trained)}"


def _examples(glob: str, paths: Iterable[str]) -> str:
    return suggestion(glob, sorted({"/".join(path.split("/")[:2]) + "/*" for path in paths}))


def _names(path: str, names: Iterable[str], known: Iterable[str]) -> Problems:
    names, known = list(names), list(known)
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"{path} has {name!r} twice."
    for name in names:
        if name not in known:
            yield f"{path} has {name!r}. {suggestion(name, known)}"


def _positive(path: str, owner: object, *names: str) -> Problems:
    for name in names:
        if getattr(owner, name) <= 0:
            yield f"{path}.{name} is {getattr(owner, name)}; it must be positive."
