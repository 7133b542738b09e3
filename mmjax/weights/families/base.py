"""What mmjax has to know of a family of published models: its config.json and its tensors, both ways."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from mmjax.models.config import DecoderConfig, ViTConfig, VLMConfig
from mmjax.weights.config_json import ConfigJson
from mmjax.weights.rules import Rule

# What a checkpoint holds: one part of a model, or a whole one.
type PartConfig = DecoderConfig | ViTConfig | VLMConfig


@dataclasses.dataclass(frozen=True)
class Family:
    """One family of models.

    Attributes:
        name: as people say it.
        model_types: values of `model_type` in config.json; the first is what we write.
        architecture: the class of transformers that reads what we write.
        read: config.json to our config. Raises InputError for what mmjax cannot do.
        write: our config to the settings of config.json, beside `model_type` and `architectures`.
        rules: the table of tensors of a model.
        accepts: whether models of a config can be written as this family.
        spellings: patterns and replacements that turn other names of the same tensors into those of the table.
        unused: globs of tensors that are not part of the function: other towers, tables that are computed.
        images: our config to a preprocessor_config.json; None for a decoder.
    """

    name: str
    model_types: tuple[str, ...]
    architecture: str
    read: Callable[[ConfigJson], PartConfig]
    write: Callable[[Any], dict[str, Any]]
    rules: Callable[[Any], list[Rule]]
    accepts: Callable[[PartConfig], bool]
    spellings: tuple[tuple[str, str], ...] = ()
    unused: tuple[str, ...] = ()
    images: Callable[[ViTConfig], dict[str, Any]] | None = None

    def spelt(self, name: str) -> str:
        """The name of a tensor as the table has it."""
        for pattern, replacement in self.spellings:
            name = re.sub(pattern, replacement, name)
        return name

    def is_unused(self, name: str) -> bool:
        """Whether a tensor (as the table spells it) is not part of the function."""
        return any(fnmatchcase(name, pattern) for pattern in self.unused)


# Settings that change no number that a model computes, but that tools want to find again.
KEPT = (
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "initializer_range",
    "initializer_factor",
    "attention_dropout",
    "projection_dim",
    "router_aux_loss_coef",
    "layerscale_value",
    "use_cache",
)


def kept(original: Mapping[str, Any]) -> dict[str, Any]:
    """Those settings of a config.json that go back unchanged into the one that we write."""
    return {key: original[key] for key in KEPT if key in original}
