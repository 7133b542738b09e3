"""What becomes of every setting of a config.json: obeyed, refused where it says something new, or harmless; and what transformers reads.

Each family lists its own. `tests/weights/test_config_keys.py` compares the lists with the classes of the installed transformers and with
the code of its models, so that a setting that is new there fails here.
"""

import ast
import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mmjax.base.huggingface import transformers


@dataclasses.dataclass(frozen=True)
class ConfigKeys:
    """The settings of one class of transformers' configs.

    Attributes:
        obeyed: names, with spaces between, of what is read.
        refused: what would change the function in a way that mmjax does not have, with the values at which it does not, of which the first
            is that of an absent one.
        harmless: the reason, and names of what no number that a model computes depends on.
        model_types: of transformers' classes that a file may become beside the one that it names.
    """

    obeyed: str = ""
    refused: Mapping[str, tuple[Any, ...]] = MappingProxyType({})
    harmless: Mapping[str, str] = MappingProxyType({})
    model_types: tuple[str, ...] = ()

    @property
    def names(self) -> frozenset[str]:
        """All that are listed."""
        harmless = " ".join(self.harmless.values())
        return frozenset((*self.obeyed.split(), *self.refused, *harmless.split()))

    def __or__(self, other: "ConfigKeys") -> "ConfigKeys":
        """Both lists; where one has what the other obeys or refuses, the other's word counts."""
        return ConfigKeys(
            f"{self.obeyed} {other.obeyed}",
            {key: value for key, value in self.refused.items() if key not in other.names}
            | dict(other.refused),
            {
                reason: " ".join(
                    name
                    for name in f"{self.harmless.get(reason, '')} {other.harmless.get(reason, '')}".split()
                    if name in other.harmless.get(reason, "").split() or name not in other.names
                )
                for reason in {**self.harmless, **other.harmless}
            },
            self.model_types + other.model_types,
        )


# Reasons of which there are several lists.
OF_TEXT = "only models of text have it"
TRAINING = "only training depends on it: dropout, losses, how fresh numbers are drawn"
OUTPUTS = "which results are handed over, and how they are computed, not what they are"

COMMON = ConfigKeys(
    obeyed="model_type quantization_config compression_config",
    refused={
        "per_layer_config": (None, {}),
        "configuration_files": (None, []),
        "transformers_weights": (None, "model.safetensors", "model.safetensors.index.json"),
        "fusion_config": (None, {}),
        "is_encoder_decoder": (False,),
    },
    harmless={
        "names and versions": "architectures transformers_version _name_or_path name_or_path _commit_hash _diffusers_version "
        "finetuning_task tokenizer_class processor_class prefix language unsloth_version unsloth_fixed is_composition",
        "code that comes with a model, which is never run: mmjax computes what transformers' own class does": "auto_map custom_pipelines",
        "tensors say their dtype themselves": "dtype torch_dtype use_bfloat16",
        OUTPUTS: "return_dict use_return_dict output_hidden_states output_attentions attn_implementation _attn_implementation "
        "_attn_implementation_internal _attn_implementation_autoset experts_implementation _experts_implementation "
        "_experts_implementation_internal use_cache torchscript chunk_size_feed_forward gradient_checkpointing distributed_config "
        "device_map use_flash_attn _flash_attn_2_enabled",
        "heads for classes, which are not read": "id2label label2id num_labels problem_type classifier_dropout token_classification_bias",
        "transformers 5 reads it in none of these models": "pruned_heads tie_encoder_decoder is_decoder add_cross_attention "
        "cross_attention_hidden_size tf_legacy_loss task_specific_params",
        "said of generation, not of the model": "max_length min_length do_sample early_stopping num_beams num_beam_groups "
        "diversity_penalty temperature top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size "
        "encoder_no_repeat_ngram_size bad_words_ids num_return_sequences output_scores return_dict_in_generate forced_bos_token_id "
        "forced_eos_token_id remove_invalid_values exponential_decay_length_penalty suppress_tokens begin_suppress_tokens max_new_tokens",
        "special tokens": "bos_token_id eos_token_id pad_token_id sep_token_id cls_token_id mask_token_id unk_token_id "
        "decoder_start_token_id",
        TRAINING: "initializer_range initializer_factor init_std hidden_dropout",
        "what `hidden_states[-1]` of transformers is": "tie_last_hidden_states",
        OF_TEXT: "max_position_embeddings original_max_position_embeddings rms_norm_eps rope_theta rope_scaling rope_parameters "
        "partial_rotary_factor layer_types sliding_window num_key_value_heads vocab_size is_causal attention_chunk_size kv_sharing_modes",
        "of draft layers behind a model, which are not read, or of other models that have such": "num_mtp_layers mtp_layer_types "
        "mtp_mlp_layer_types mtp_per_layer_config mtp_hidden_states_first chain_hidden_post_norm logits_mup_width_multiplier "
        "unpadded_vocab_size first_k_dense_replace mlp_layer_types number_of_conv_states",
    },
)
"""What all classes have, and what files of older versions say."""

DECODER = COMMON | ConfigKeys(
    obeyed="vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim "
    "max_position_embeddings original_max_position_embeddings rms_norm_eps rope_theta rope_scaling rope_parameters "
    "partial_rotary_factor tie_word_embeddings layer_types",
    refused={
        "hidden_act": ("silu", "swish"),
        "is_causal": (True, None),
        "attention_chunk_size": (None,),
        "kv_sharing_modes": (None, []),
    },
    harmless={TRAINING: "attention_dropout"},
)
"""What all decoders have."""

ROPE = ConfigKeys(
    obeyed="rope_theta rope_type type factor original_max_position_embeddings partial_rotary_factor attention_factor beta_fast beta_slow "
    "truncate low_freq_factor high_freq_factor mscale mscale_all_dim",
    harmless={"of a rope_type that is refused": "short_factor long_factor"},
)
"""The settings of rotary positions."""

ENCODER = COMMON | ConfigKeys(
    obeyed="image_size patch_size hidden_size num_hidden_layers num_attention_heads head_dim hidden_act layer_norm_eps",
    refused={"num_channels": (3,), "tie_last_hidden_states": (None, False)},
    harmless={
        TRAINING: "attention_dropout dropout",
        "of what stands behind the encoder, or of another tower": "projection_dim projection_size logit_scale_init_value text_config "
        "text_config_dict tie_word_embeddings",
    },
)
"""What all encoders have."""

WHOLE = COMMON | ConfigKeys(
    obeyed="vision_config",
    harmless={
        "of the other tower, or of what compares the two": "text_config text_config_dict projection_dim projection_size "
        "logit_scale_init_value tie_word_embeddings",
        "said of the parts, within which alone it is read": "hidden_size intermediate_size num_hidden_layers num_attention_heads head_dim "
        "hidden_act layer_norm_eps image_size patch_size num_channels vision_use_head attention_dropout",
    },
)
"""What all models have that consist of parts."""

# The code of transformers that acts on configs of every model, beside that of the model itself.
_ROPE = "modeling_rope_utils.py"
_SHARED = (
    "configuration_utils.py",
    "models/auto/configuration_auto.py",
    "modeling_utils.py",
    _ROPE,
    "modeling_layers.py",
    "masking_utils.py",
    "cache_utils.py",
    "utils/output_capturing.py",
    "integrations/heterogeneity/configuration_utils.py",
)
_CONFIGS = {"config", "text_config", "vision_config", "effective_config", "layer_config"}
_FROM_FILES = {"__post_init__", "__init__", "convert_rope_params_to_dict"}


@functools.cache
def read_by_transformers(*model_types: str) -> frozenset[str]:
    """The names that transformers' code of some models reads from their configs, found in its source; nothing if it has no such models."""
    classes = transformers().CONFIG_MAPPING
    files = []
    for model_type in model_types:
        if model_type in classes:
            own = _package().joinpath(*classes[model_type].__module__.split(".")[1:-1])
            files += [*own.glob("modeling_*.py"), *own.glob("configuration_*.py")]
    if files:
        files += [path for name in _SHARED if (path := _package() / name).exists()]
    return frozenset(name for path in files for name in _read_names(path))


@functools.cache
def read_of_rope() -> frozenset[str]:
    """The names that transformers reads from the settings of rotary positions."""
    tree = ast.parse((_package() / _ROPE).read_text(encoding="utf-8"))
    return frozenset(_keys(ast.walk(tree), {"rope_parameters", "rope_parameters_dict"}))


def _package() -> Path:
    return Path(str(transformers().__file__)).parent


@functools.cache
def _read_names(path: Path) -> frozenset[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set(_attributes(tree)) | set(_keys(ast.walk(tree), {"config_dict"}))
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef) and function.name in _FROM_FILES:
            found |= set(_keys(ast.walk(function), {"kwargs"}))
    return frozenset(found)


def _attributes(tree: ast.AST) -> Iterator[str]:
    """config.NAME, self.config.NAME, getattr(config, "NAME", ...)"""

    def is_config(node: ast.expr) -> bool:
        name = node.id if isinstance(node, ast.Name) else getattr(node, "attr", "")
        return name in _CONFIGS

    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=owner, attr=name) if is_config(owner):
                yield name
            case ast.Call(
                func=ast.Name(id="getattr" | "hasattr"),
                args=[owner, ast.Constant(value=str(name)), *_],
            ) if is_config(owner):
                yield name


def _keys(nodes: Iterable[ast.AST], mappings: set[str]) -> Iterator[str]:
    """kwargs.pop("NAME"), kwargs["NAME"], "NAME" in kwargs"""

    def is_mapping(node: ast.expr) -> bool:
        return isinstance(node, ast.Name) and node.id in mappings

    for node in nodes:
        match node:
            case ast.Call(
                func=ast.Attribute(value=owner, attr="get" | "pop" | "setdefault"),
                args=[ast.Constant(value=str(name)), *_],
            ) if is_mapping(owner):
                yield name
            case ast.Subscript(value=owner, slice=ast.Constant(value=str(name))) if is_mapping(
                owner
            ):
                yield name
            case ast.Compare(left=ast.Constant(value=str(name)), comparators=[owner]) if is_mapping(
                owner
            ):
                yield name
