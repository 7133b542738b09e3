"""The families of published models that mmjax reads and writes."""

from mmjax.weights.families.base import Family, PartConfig, kept
from mmjax.weights.families.clip import CLIP
from mmjax.weights.families.dinov2 import DINOV2
from mmjax.weights.families.llama import LLAMA
from mmjax.weights.families.llava import LLAVA
from mmjax.weights.families.mistral import MISTRAL
from mmjax.weights.families.mixtral import MIXTRAL
from mmjax.weights.families.qwen2 import QWEN2
from mmjax.weights.families.qwen3 import QWEN3
from mmjax.weights.families.siglip import SIGLIP

# Where several families could write a model, the first does.
FAMILIES = (LLAMA, MISTRAL, QWEN2, QWEN3, MIXTRAL, CLIP, SIGLIP, DINOV2, LLAVA)

BY_MODEL_TYPE = {model_type: family for family in FAMILIES for model_type in family.model_types}

__all__ = ["BY_MODEL_TYPE", "FAMILIES", "Family", "PartConfig", "kept"]
