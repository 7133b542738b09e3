"""What a recipe's settings must agree on, checked before any device is touched. All contradictions are reported at once."""

import dataclasses
import itertools
from collections.abc import Collection, Iterable, Iterator

from mmjax import transitions
from mmjax.data.text.templates import CHAT
from mmjax.data.text.vocabulary import filled
from mmjax.distributed.mesh import check_axes
from mmjax.errors import InputError
from mmjax.evaluation.tasks import tasks
from mmjax.kernels.attention import IMPLEMENTATIONS
from mmjax.models import check_model_config, parameters
from mmjax.models.config import VLMConfig
from mmjax.recipe.recipe import PARTS, RANDOM, DataConfig, OptimizerConfig, Recipe, Stage
from mmjax.recipe.schema import suggestion
from mmjax.training.logging import TRACKERS

Problems = Iterator[str]

_ANY = 8  # tokens of a vocabulary that is not known yet: no rule depends on it


def check(recipe: Recipe, *, partial: bool = False, shared_sources: Collection[str] = ()) -> None:
    """Checks a recipe; `partial`: texts that the user still has to give may be empty; `shared_sources`: those that the config names once
    for all stages.

    Raises:
        InputError: with one line for each contradiction.
    """
    stages = list(filled(recipe, _ANY).stages.values())
    # Each round looks at what makes sense only when nothing before it is wrong: numbers, the parameters they make, and how those change.
    rounds = (
        lambda: _recipe(recipe, partial, shared_sources),
        lambda: itertools.chain.from_iterable(map(_parameters, stages)),
        lambda: itertools.chain.from_iterable(map(_change, [None, *stages], stages)),
    )
    for find in rounds:
        if problems := list(find()):
            raise InputError("\n".join(problems))


def missing(recipe: Recipe, shared_sources: Collection[str] = ()) -> dict[str, str]:
    """Texts that the config leaves to the user, by path ("config.tokenizer.path"): what is expected there.

    Args:
        shared_sources: names of sources that the config has once for all stages.
    """
    found = {}
    for stage in recipe.stages.values():
        for part, weights in stage.init_from.items():
            if not weights:
                found[f"config.stages.{stage.name}.init_from.{part}"] = (
                    f"a folder or a file (or {RANDOM!r} to measure without)"
                )
        for name, source in stage.data.sources.items():
            place = "config" if name in shared_sources else f"config.stages.{stage.name}"
            for field in dataclasses.fields(source):
                if field.default is dataclasses.MISSING and getattr(source, field.name) == "":
                    found[f"{place}.data.sources.{name}.{field.name}"] = "one"
    if recipe.tokenizer.kind == "huggingface" and not recipe.tokenizer.path:
        found["config.tokenizer.path"] = "a tokenizer file, a GGUF file, or the folder of one"
    return found


def refuse_missing(recipe: Recipe, shared_sources: Collection[str] = ()) -> None:
    """Raises InputError, with a line and a flag for each, if texts are still to be given."""
    if wanted := missing(recipe, shared_sources):
        raise InputError("\n".join(map(_give, wanted, wanted.values())))


def _give(path: str, what: str) -> str:
    return f"{path} has no value yet; give {what} with --{path}=..."


def _recipe(recipe: Recipe, partial: bool, shared_sources: Collection[str]) -> Problems:
    """Numbers, names, and texts that are still to be given."""
    for number, stage in enumerate(recipe.stages.values()):
        yield from _stage(stage, number == 0)
    if not partial:
        for path, what in missing(recipe, shared_sources).items():
            yield _give(path, what)
    if recipe.tokenizer.kind == "words":
        reads = "--config.tokenizer.kind=huggingface reads one."
        if recipe.tokenizer.path:
            yield f"config.tokenizer.path: a tokenizer of words is built from the training text; {reads}"
        for stage in recipe.stages.values():
            if stage.data.template == CHAT:
                yield (
                    f"config.stages.{stage.name}.data.template is {CHAT!r}, a published tokenizer's own; a tokenizer of words has none. "
                    f"{reads}"
                )
    evaluation, logging, known_tasks = recipe.evaluation, recipe.logging, tasks()
    yield from _names("config.evaluation.tasks", evaluation.tasks, known_tasks)
    yield from _names("config.logging.trackers", logging.trackers, TRACKERS)
    if recipe.kernels.attention is not None:
        yield from _names("config.kernels.attention", [recipe.kernels.attention], IMPLEMENTATIONS)
    for name in dict.fromkeys(evaluation.tasks):
        if name in known_tasks:
            yield from known_tasks[name].problems(recipe)
    yield from _positive(
        "config.evaluation", evaluation, "batch_size", "max_new_tokens", "max_caption_tokens"
    )
    yield from _positive("config.checkpoint", recipe.checkpoint, "every", "keep_last")
    yield from _positive("config.logging", logging, "every")
    if logging.evaluate_every < 0:
        yield f"config.logging.evaluate_every must be 0 (only at the end of a stage) or more, not {logging.evaluate_every}."
    if logging.hang_timeout < 0:
        yield f"config.logging.hang_timeout must be 0 (no watching) or more, not {logging.hang_timeout}."
    if evaluation.limit is not None and evaluation.limit < 1:
        yield f"config.evaluation.limit must be at least 1, or none, not {evaluation.limit}."
    if logging.peak_flops is not None and logging.peak_flops <= 0:
        yield f"config.logging.peak_flops must be positive, or none (known devices are looked up), not {logging.peak_flops}."
    try:
        check_axes(recipe.mesh)
    except InputError as error:
        yield f"config.{error}"
    if recipe.seed < 0:
        yield f"config.seed must be 0 or more, not {recipe.seed}."


def _stage(stage: Stage, first_stage: bool) -> Problems:
    path, optimizer = f"config.stages.{stage.name}", stage.optimizer
    yield from _positive(path, stage, "steps", "batch_size", "gradient_accumulation_steps")
    parts = stage.gradient_accumulation_steps
    if parts > 0 and stage.batch_size % parts:
        yield f"{path}.batch_size {stage.batch_size} must be divisible by gradient_accumulation_steps {parts}."
    yield from _names(f"{path}.transitions", stage.transitions, transitions.transitions())
    yield from _names(f"{path}.init_from", stage.init_from, ("model", *PARTS))
    yield from _model(f"{path}.model", stage.model, first_stage)
    yield from _data(f"{path}.data", stage.data)
    yield from _optimizer(f"{path}.optimizer", optimizer)
    least = optimizer.warmup_steps + 4
    if optimizer.schedule == "cosine_over_all" and 0 < stage.steps < least:
        yield (
            f"{path}.steps must be at least warmup_steps + 4 = {least} with optimizer.schedule 'cosine_over_all', whose last two updates "
            f"are zero, not {stage.steps}. Take more steps, a shorter warm-up, or 'cosine'."
        )


def _model(path: str, model: VLMConfig, first_stage: bool) -> Problems:
    connector, vision, lora = model.connector, model.vision, model.lora
    for problem in itertools.chain(
        check_model_config.problems(vision, f"{path}.vision."),
        check_model_config.problems(model.decoder, f"{path}.decoder."),
        check_model_config.connector_problems(
            connector, vision, f"{path}.connector", first_stage=first_stage
        ),
    ):
        yield f"{problem}."
    # A published encoder may have pixels beyond its last whole patch, which it does not read; a recipe says what it means.
    size, patch = vision.image_size, vision.patch_size
    if patch > 0 and size >= patch and size % patch:
        low = size // patch * patch
        yield f"{path}.vision.image_size {size} must be divisible by patch_size {patch}; {low} and {low + patch} are."
    read = max(connector.feature_layers, default=0)
    if 0 < read < vision.layers:
        yield f"{path}.vision.layers must be {read}, the last block that the connector reads, not {vision.layers}."
    if lora.alpha <= 0:
        yield f"{path}.lora.alpha must be positive (updates are scaled by alpha / rank), not {lora.alpha}."
    if lora.rank < 0:
        yield f"{path}.lora.rank must be 0 (no low-rank updates) or more, not {lora.rank}."
    yield from _positive(path, model, "unroll")


def _data(path: str, data: DataConfig) -> Problems:
    if not data.sources:
        yield f"{path}.sources must name at least one source; it is empty."
    for name, source in data.sources.items():
        yield from _positive(f"{path}.sources.{name}", source, "weight")
    yield from _positive(path, data, "text_length")
    yield from _not_negative(path, data, "images_per_row", "holdout", "workers")
    if not 0 <= data.skip_budget <= 1:
        yield f"{path}.skip_budget must be a share between 0 and 1, not {data.skip_budget}."


def _optimizer(path: str, optimizer: OptimizerConfig) -> Problems:
    yield from _positive(path, optimizer, "learning_rate", "epsilon")
    for name, beta in (("beta1", optimizer.beta1), ("beta2", optimizer.beta2)):
        if not 0 <= beta < 1:
            yield f"{path}.{name} must be at least 0 and below 1, not {beta}."
    yield from _not_negative(path, optimizer, "weight_decay", "final_scale", "warmup_steps")
    if optimizer.clip_norm is not None and optimizer.clip_norm <= 0:
        yield f"{path}.clip_norm must be positive, or none for no clipping, not {optimizer.clip_norm}."


def _parameters(stage: Stage) -> Problems:
    """Globs that match nothing: most often a misspelt path, and a part of the model that stays frozen unnoticed."""
    path = f"config.stages.{stage.name}"
    try:
        paths = list(parameters.abstract(stage.model)[1])
    except ValueError as error:  # the model cannot be built from its config: a glob of LoRA that matches nothing, for one
        yield f"{path}.model: {error}"
        return
    made, said = parameters.visual_embedding_shape(stage.model), stage.model.visual_tokens
    if made != (said, stage.model.decoder.width):
        yield (
            f"{path}.model.connector must give {said} visual tokens, as its visual_tokens says, of the decoder's width "
            f"{stage.model.decoder.width}; the module gives {made[0]} of width {made[-1]}."
        )

    def unmatched(what: str, glob: str, names: Iterable[str]) -> Problems:
        if not any(parameters.matches(name, (glob,)) for name in names):
            near = sorted({"/".join(name.split("/")[:2]) + "/*" for name in names})
            yield f"{what}, and {glob!r} does not. {suggestion(glob, near)}"

    if not stage.trainable:
        yield f"{path}.trainable must match the parameters that are trained; it is empty."
    for glob in stage.trainable:
        yield from unmatched(f"{path}.trainable must match parameters", glob, paths)
    trained = [name for name in paths if parameters.matches(name, stage.trainable)]
    for group in stage.optimizer.groups:
        what = f"{path}.optimizer.groups must match trained parameters"
        yield from unmatched(what, group.match, trained)


def _change(before: Stage | None, stage: Stage) -> Problems:
    """What one stage's model hands to the next."""
    if before is None:
        if stage.transitions:
            yield (
                f"config.stages.{stage.name}.transitions must be empty in the first stage, where there are no parameters to change yet, "
                f"not {stage.transitions}."
            )
        return
    try:
        transitions.plan(
            stage.transitions,
            before.model,
            stage.model,
            stage=stage.name,
            loaded=stage.loaded_parts,
        )
    except InputError as error:
        yield f"config, {error}"


def _names(path: str, names: Iterable[str], known: Iterable[str]) -> Problems:
    names, known = list(names), list(known)
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"{path} must name each once, and has {name!r} twice."
    for name in names:
        if name not in known:
            yield f"{path} has {name!r}. {suggestion(name, known)}"


def _positive(path: str, owner: object, *names: str) -> Problems:
    for name in names:
        if (value := getattr(owner, name)) <= 0:
            yield f"{path}.{name} must be positive, not {value}."


def _not_negative(path: str, owner: object, *names: str) -> Problems:
    for name in names:
        if (value := getattr(owner, name)) < 0:
            yield f"{path}.{name} must be 0 or more, not {value}."
