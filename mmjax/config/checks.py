"""What a recipe's settings must agree on, checked before any device is touched. All contradictions are reported at once."""

import dataclasses
import itertools
from collections.abc import Collection, Iterable, Iterator

from mmjax import transitions
from mmjax.data.text.templates import CHAT
from mmjax.data.text.vocabulary import with_vocabulary
from mmjax.distributed import mesh
from mmjax.errors import InputError
from mmjax.evaluation import tasks
from mmjax.kernels.attention import IMPLEMENTATIONS
from mmjax.models import check_model_config, parameters
from mmjax.models.config import ViTConfig, VLMConfig
from mmjax.recipe.recipe import RANDOM, DataConfig, OptimizerConfig, Recipe, Stage
from mmjax.recipe.schema import suggestion
from mmjax.training import logging

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
    for number, stage in enumerate(recipe.stages.values()):
        yield from _stage(stage, partial, number == 0)
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
    yield from _names("config.logging.trackers", recipe.logging.trackers, logging.TRACKERS)
    if recipe.kernels.attention is not None:
        yield from _names("config.kernels.attention", [recipe.kernels.attention], IMPLEMENTATIONS)
    for name in dict.fromkeys(recipe.evaluation.tasks):
        if name in tasks.TASKS:
            yield from tasks.TASKS[name].problems(recipe)
    yield from _positive(
        "config.evaluation", recipe.evaluation, "batch_size", "max_new_tokens", "max_caption_tokens"
    )
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
        mesh.check_axes(recipe.mesh)
    except InputError as error:
        yield f"config.{error}"
    if recipe.seed < 0:
        yield f"config.seed is {recipe.seed}; it must not be negative."


def _stage(stage: Stage, partial: bool, first_stage: bool) -> Problems:
    path = f"config.stages.{stage.name}"
    yield from _positive(path, stage, "steps", "batch_size", "gradient_accumulation_steps")
    if (
        stage.gradient_accumulation_steps > 0
        and stage.batch_size % stage.gradient_accumulation_steps
    ):
        parts = stage.gradient_accumulation_steps
        yield f"{path}.batch_size {stage.batch_size} must be divisible by gradient_accumulation_steps {parts}."
    yield from _names(f"{path}.transitions", stage.transitions, transitions.transitions())
    yield from _names(
        f"{path}.init_from", stage.init_from, ("model", "vision", "connector", "decoder")
    )
    for part, weights in stage.init_from.items():
        if not weights and not partial:
            yield _give(
                f"{path}.init_from.{part}", f"a folder or a file (or {RANDOM!r} to measure without)"
            )
    yield from _model(f"{path}.model", stage.model, first_stage)
    yield from _data(f"{path}.data", stage.data)
    yield from _optimizer(f"{path}.optimizer", stage.optimizer)
    if (
        stage.optimizer.schedule == "cosine_over_all"
        and 0 < stage.steps < stage.optimizer.warmup_steps + 4
    ):
        yield (
            f"{path}.optimizer.schedule is 'cosine_over_all', whose last two updates are zero: steps = {stage.steps} with warmup_steps = "
            f"{stage.optimizer.warmup_steps} leave next to nothing. Take {stage.optimizer.warmup_steps + 4} steps or more, a shorter "
            "warm-up, or 'cosine'."
        )


def _model(path: str, model: VLMConfig, first_stage: bool) -> Problems:
    for name, part in (("vision", model.vision), ("decoder", model.decoder)):
        found = check_model_config.problems(part, f"{path}.{name}.", unknown_vocabulary=True)
        yield from (f"{problem}." for problem in found)
    yield from _whole_patches(f"{path}.vision", model.vision)
    found = check_model_config.connector_problems(
        model.connector, model.vision, f"{path}.connector", first_stage=first_stage
    )
    yield from (f"{problem}." for problem in found)
    read = max(model.connector.feature_layers, default=0)
    if 0 < read < model.vision.layers:
        yield f"{path}.vision.layers must be {read}, the last block that the connector reads, not {model.vision.layers}."
    if model.lora.alpha <= 0:
        yield f"{path}.lora.alpha must be positive (updates are scaled by alpha / rank), not {model.lora.alpha}."
    if model.lora.rank < 0:
        yield f"{path}.lora.rank must be 0 (no low-rank updates) or more, not {model.lora.rank}."
    yield from _positive(path, model, "unroll")


def _whole_patches(path: str, vision: ViTConfig) -> Problems:
    """A published encoder may have pixels beyond its last whole patch, which it does not read; a recipe says what it means."""
    size, patch = vision.image_size, vision.patch_size
    if patch > 0 and size >= patch and size % patch:
        low = size // patch * patch
        yield f"{path}.image_size {size} must be divisible by patch_size {patch}; {low} and {low + patch} are."


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
        return
    try:
        old, new = (
            with_vocabulary(one.model, one.model.decoder.vocabulary or _ANY)
            for one in (before, stage)
        )
        transitions.plan(stage.transitions, old, new, stage=stage.name, loaded=stage.loaded_parts)
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
