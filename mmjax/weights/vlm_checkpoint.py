"""A whole model in three folders: decoder and encoder as transformers reads them, the connector as safetensors with a config of mmjax.

Where transformers has a class for the whole, a fourth folder beside them holds the same numbers for it.
"""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmjax.errors import InputError
from mmjax.models import parameters
from mmjax.models.config import ConnectorConfig, LanguageModelConfig, VisionEncoderConfig, VLMConfig
from mmjax.recipe.schema import KeyPath, convert
from mmjax.recipe.serialization import to_plain
from mmjax.weights.families.base import CONFIG, read_config
from mmjax.weights.open import open_weights
from mmjax.weights.pretrained_files import (
    PretrainedFiles,
    TensorGroup,
    of_whole,
    open_pretrained_files,
)
from mmjax.weights.pretrained_protocol import shapes_of
from mmjax.weights.rules import Rule

VISION, CONNECTOR, DECODER = "vision", "connector", "decoder"
PARTS = (VISION, CONNECTOR, DECODER)
"""The folders."""
WHOLE = "llava"
"""The folder beside them that holds the same model as one, where it has the form of a published one."""
MODEL_TYPE = "mmjax_connector"


def open_vlm_checkpoint(path: Path) -> PretrainedFiles:
    """Opens the three folders. Raises InputError as `open_pretrained_files`, and if the connector does not fit between the other two."""
    with contextlib.ExitStack() as stack:
        vision = stack.enter_context(open_pretrained_files(path / VISION))
        decoder = stack.enter_context(open_pretrained_files(path / DECODER))
        if not isinstance(vision.config, VisionEncoderConfig) or not isinstance(
            decoder.config, LanguageModelConfig
        ):
            raise InputError(f"{path}: vision/ must hold a vision encoder, and decoder/ a decoder.")
        where = path / CONNECTOR / CONFIG
        settings = read_config(where.parent)
        if settings.text("model_type", "") != MODEL_TYPE:
            raise InputError(
                f"{where}: model_type is not {MODEL_TYPE!r}; it is no connector of mmjax."
            )
        try:
            connector = convert(settings.content.get("connector"), ConnectorConfig, KeyPath())
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
        config = VLMConfig(
            vision.config.vision, connector, decoder.config.decoder, compute_dtype="float32"
        )
        source = stack.enter_context(open_weights(path / CONNECTOR))
        shapes = shapes_of(config, where)
        rules = connector_rules(config)
        names = {name: name for name in source.tensors}
        own = {rule.param_path: shapes[rule.param_path] for rule in rules}
        group = TensorGroup(source, names, rules, own)
        group.check()
        stack.pop_all()
    return PretrainedFiles(
        config,
        [*vision.groups, group, *decoder.groups],
        [*vision.origins, *of_whole(settings, "", config), *decoder.origins],
        [*vision.notes, *decoder.notes],
    )


def connector_json(config: ConnectorConfig, kept: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of the connector's folder. kept: settings of a whole model that its tools want to find again."""
    return {"model_type": MODEL_TYPE, "connector": to_plain(config), **kept}


def connector_rules(config: VLMConfig) -> list[Rule]:
    """Every parameter of the connector under its own name, with dots for slashes, as it is."""
    paths = [path for path in parameters.abstract(config)[1] if path.startswith(f"{CONNECTOR}/")]
    return [Rule(path, path.removeprefix(f"{CONNECTOR}/").replace("/", ".")) for path in paths]
