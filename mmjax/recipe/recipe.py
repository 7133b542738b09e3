"""What a run is: a recipe of stages joined by transitions, as plain frozen dataclasses. `mmjax.config.load` builds it from a config
file."""

from dataclasses import dataclass, field
from typing import Literal

from mmjax.data.sources.base import SourceConfig
from mmjax.models.config import VLMConfig

RANDOM = "random"  # in `Stage.init_from`: no published weights, and said so
PARTS = ("vision", "connector", "decoder")


@dataclass(frozen=True)
class DataConfig:
    """What a stage reads.

    Attributes:
        sources: by name; rows are mixed in proportion to their weights.
        text_length: text tokens per row; a row is T = text_length + images_per_row * L tokens long.
        images_per_row: image slots per row (I).
        template: how questions and captions become text: "plain" (question, answer), "short_prompt" (InstructBLIP-like), "vicuna_v1",
            "llama3", "chat" (the tokenizer's own chat template).
        train_on_special_tokens: train on the template's special tokens wherever they stand, such as those around what the user says;
            without, on what the assistant says and the end of it.
        resize: how an image becomes the encoder's square: "stretch" keeps all of it but not its aspect, "crop" its middle and its aspect.
        flip: mirror an image left-right with probability one half.
        holdout: examples of each source that are never trained on and give the held-out loss: the last ones, or as `holdout_by` says.
        workers: loader processes; 0 reads in threads of this process. The order of the data does not depend on it.
        skip_budget: the share of unusable samples (corrupt image, no supervised token) past which the run stops.
    """

    sources: dict[str, SourceConfig]
    text_length: int
    images_per_row: int = 1
    template: Literal["plain", "short_prompt", "vicuna_v1", "llama3", "chat"] = "plain"
    resize: Literal["stretch", "crop"] = "stretch"
    flip: bool = False
    train_on_special_tokens: bool = False
    holdout: int = 0
    workers: int = 0
    skip_budget: float = 0.01


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters whose path matches the glob train at a multiple of the learning rate, with a weight decay of their own."""

    match: str
    learning_rate_scale: float = 1.0
    weight_decay: float | None = None


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (arXiv:1711.05101) with linear warm-up and a cosine to `final_scale` times the peak.

    Attributes:
        schedule: "cosine" falls from the end of the warm-up to the end of the stage; "cosine_over_all" is the part after the warm-up of one
            that falls over all steps, scaled to begin at the peak (arXiv:2505.22664, official code).
        clip_norm: bound on the global norm of the gradient; None: no clipping.
        groups: the first match decides; no weight decay ever falls on norms, biases, and other vectors.
    """

    learning_rate: float
    schedule: Literal["cosine", "cosine_over_all", "constant"] = "cosine"
    warmup_steps: int = 0
    final_scale: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float | None = 1.0
    groups: tuple[ParameterGroup, ...] = ()


@dataclass(frozen=True)
class Stage:
    """Training of one model on one mixture.

    Attributes:
        transitions: how the parameters of the stage before become this stage's, in order (names in mmjax.transitions).
        init_from: published weights that the stage begins with, by part: "vision", "connector", "decoder", or "model" for all three. A path
            of a folder or a file (docs/weights.md); "fetched:NAME" for what `python -m mmjax.fetch NAME` has brought;
            "hf:OWNER/NAME", with "@REVISION" and "/FILE" where one is meant, for a model of the Hugging Face Hub, which is downloaded if it
            is not in the cache; or "random", to say that fresh numbers are meant.
        trainable: globs over parameter paths; all else is frozen and has no gradient and no optimizer state.
        batch_size: rows per step over all devices; gradient_accumulation_steps: parts it is computed in, one after the other.
    """

    name: str
    model: VLMConfig
    data: DataConfig
    optimizer: OptimizerConfig
    steps: int
    batch_size: int
    transitions: tuple[str, ...] = ()
    init_from: dict[str, str] = field(default_factory=dict)
    trainable: tuple[str, ...] = ("*",)
    gradient_accumulation_steps: int = 1

    @property
    def loaded_parts(self) -> set[str]:
        """Parts of the model that do not come from the stage before: `init_from` give them, or say that they are drawn afresh."""
        return set(PARTS) if "model" in self.init_from else set(self.init_from)


@dataclass(frozen=True)
class TokenizerConfig:
    """Which tokenizer the run reads text with.

    kind "words": word-level with byte fallback, built from the training text and kept in the workdir.
    kind "huggingface": a published one at `path`: tokenizer.json, tokenizer.model (Llama 3's or SentencePiece's), a GGUF file, or a folder
    with one of these; "fetched:NAME" and "hf:OWNER/NAME" as in `init_from`."""

    kind: Literal["words", "huggingface"] = "words"
    path: str | None = None


@dataclass(frozen=True)
class CheckpointConfig:
    """When states are saved: every `every` steps and at the end of a stage; the last `keep_last` and the best by held-out loss stay."""

    every: int = 500
    keep_last: int = 2
    keep_best: bool = True


@dataclass(frozen=True)
class LoggingConfig:
    """Metrics every `every` steps; held-out loss every `evaluate_every` (0: only at the end of a stage).

    Attributes:
        peak_flops: FLOP/s of one device, for MFU; None: of the table of accelerators (base/devices.py), and no MFU on others or on a CPU.
    """

    every: int = 50
    evaluate_every: int = 500
    trackers: tuple[str, ...] = ("jsonl", "tensorboard")
    hang_timeout: float = 1800.0
    peak_flops: float | None = None


@dataclass(frozen=True)
class EvaluationConfig:
    """What the final stage is scored on.

    Attributes:
        tasks: names in mmjax.evaluation, such as "easy_vqa".
        max_new_tokens: after which an answer to a question is cut; max_caption_tokens: a caption.
        limit: images per task, None for all.
    """

    tasks: tuple[str, ...] = ()
    batch_size: int = 32
    max_new_tokens: int = 4
    max_caption_tokens: int = 64
    untrained: bool = True
    limit: int | None = None


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; the product is the number of devices, and -1 stands for whatever the others leave.

    Attributes:
        data: rows are split, parameters are whole on every device.
        fsdp: rows are split, and so are parameters and optimizer state.
        expert, context: experts of a mixture, tokens of a row.
        tensor: heads, hidden units and vocabulary are split.
    """

    data: int = -1
    fsdp: int = 1
    expert: int = 1
    context: int = 1
    tensor: int = 1


@dataclass(frozen=True)
class KernelsConfig:
    """Which implementations compute what several can; none changes what is computed.

    Attributes:
        attention: a name of `mmjax.kernels.attention.IMPLEMENTATIONS` that serves wherever it can; None: what is fastest on the device.
        deterministic: kernels give the same bits every time. Without, gradients may be faster and differ in their last bits from run to
            run, so that a resumed run does, too.
    """

    attention: str | None = None
    deterministic: bool = True


@dataclass(frozen=True)
class Recipe:
    """A whole run. `stages` run in order; `notes` say what of it is taken from a paper, what is inferred and what is substituted."""

    name: str
    variant: str
    stages: dict[str, Stage]
    seed: int = 0
    tokenizer: TokenizerConfig = TokenizerConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    logging: LoggingConfig = LoggingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    mesh: MeshConfig = MeshConfig()
    kernels: KernelsConfig = KernelsConfig()
    notes: dict[str, str] = field(default_factory=dict)
