"""A whole model in three folders: decoder and encoder as transformers reads them, and the connector as safetensors with our own config."""

from pathlib import Path
from typing import Any

from mmjax.errors import InputError
from mmjax.models import parameters
from mmjax.models.config import ConnectorConfig, LanguageModelConfig, VisionEncoderConfig, VLMConfig
from mmjax.recipe.schema import KeyPath, convert, to_plain
from mmjax.weights.config_json import CONFIG, read_config
from mmjax.weights.open import open_weights
from mmjax.weights.pretrained_files import Published, TensorGroup, open_published, shapes_of
from mmjax.weights.rules import IDENTITY, Rule

VISION, CONNECTOR, DECODER = "vision", "connector", "decoder"
MODEL_TYPE = "mmjax_connector"


def is_whole(path: Path) -> bool:
    """Whether a folder holds a whole model in three folders."""
    return all((path / part).is_dir() for part in (VISION, CONNECTOR, DECODER))


def open_whole(path: Path) -> Published:
    """Opens the three folders. Raises InputError as `open_published`, and if the connector does not fit between the other two."""
    opened: list[Published] = []
    try:
        for part in (VISION, DECODER):
            opened.append(open_published(path / part))
        vision, decoder = (model.config for model in opened)
        if not isinstance(vision, VisionEncoderConfig) or not isinstance(
            decoder, LanguageModelConfig
        ):
            raise InputError(f"{path}: vision/ must hold a vision encoder, and decoder/ a decoder.")
        config = VLMConfig(
            vision.vision,
            read_connector(path / CONNECTOR),
            decoder.decoder,
            compute_dtype="float32",
        )
        connector = _open_connector(path / CONNECTOR, config)
    except BaseException:
        for model in opened:
            model.close()
        raise
    parts = [*opened[0].parts, connector, *opened[1].parts]
    origins, notes = (
        [found for model in opened for found in getattr(model, name)]
        for name in ("origins", "notes")
    )
    return Published(config, parts, origins, notes)


def read_connector(folder: Path) -> ConnectorConfig:
    """The config of a connector that `save_pretrained` wrote."""
    settings = read_config(folder)
    if settings.text("model_type", "") != MODEL_TYPE:
        raise InputError(
            f"{settings.where}: model_type is not {MODEL_TYPE!r}; it is no connector of mmjax."
        )
    try:
        return convert(settings.content.get("connector"), ConnectorConfig, KeyPath())
    except InputError as error:
        raise InputError(f"{settings.where}: {error}") from None


def connector_json(config: ConnectorConfig) -> dict[str, Any]:
    """What `read_connector` reads."""
    return {"model_type": MODEL_TYPE, "connector": to_plain(config)}


def connector_rules(config: VLMConfig) -> list[Rule]:
    """Every parameter of the connector under its own name, with dots, in our layout."""
    paths = [path for path in parameters.abstract(config)[1] if path.startswith(f"{CONNECTOR}/")]
    return [
        Rule(path, path.removeprefix(f"{CONNECTOR}/").replace("/", "."), IDENTITY) for path in paths
    ]


def _open_connector(folder: Path, config: VLMConfig) -> TensorGroup:
    source = open_weights(folder)
    try:
        shapes = shapes_of(config, folder / CONFIG)
        rules = connector_rules(config)
        part = TensorGroup(
            source,
            {name: name for name in source.tensors},
            rules,
            {rule.param_path: shapes[rule.param_path] for rule in rules},
        )
        part.check()
    except BaseException:
        source.close()
        raise
    return part
