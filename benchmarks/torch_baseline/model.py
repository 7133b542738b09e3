"""The whole model: encoder, connector, visual tokens placed into the rows, decoder, loss; put together as LLaVA does it."""

from typing import Any

import torch
from torch import Tensor, nn

from torch_baseline import lora
from torch_baseline.blocks import Ways
from torch_baseline.connectors import make_connector
from torch_baseline.decoder import Decoder
from torch_baseline.vision import make_vision
from torch_baseline.weights import places


class Model(nn.Module):
    """Of a spec (`step_time_folder.py`). Raises ValueError for what a part has not."""

    def __init__(self, spec: dict[str, Any]):
        super().__init__()
        c = spec["model"]
        self.vision_config, self.connector_config = c["vision"], c["connector"]
        self.depth = sum(size for _, size in spec["layer_ranges"]["decoder"])
        self.vision = make_vision(c["vision"])
        self.connector = make_connector(c["connector"], c["vision"]["width"], c["decoder"]["width"])
        self.decoder = Decoder(c["decoder"], self.depth)
        if c["lora"]["rank"]:
            updated = {
                path.removesuffix("/lora_a")
                for path in spec["parameters"]
                if path.endswith("/lora_a")
            }
            names = [
                name
                for name, place in places(self, spec).items()
                if place.path.removesuffix("/kernel") in updated
            ]
            lora.attach(
                self,
                (name.removesuffix(".weight") for name in names),
                c["lora"]["rank"],
                c["lora"]["alpha"],
            )

    def features(self, images: Tensor, ways: Ways) -> list[Tensor]:
        """What the connector reads of every image."""
        c = self.connector_config
        found = self.vision.hidden_states(images, c["feature_layers"], ways)
        if c.get("final_norm"):
            found = [self.vision.final_norm(x) for x in found]
        skipped = int(self.vision_config["class_token"] and not c.get("class_token"))
        return [x[:, skipped:] for x in found]

    def loss(self, batch: dict[str, Any], ways: Ways) -> Tensor:
        """Negative log likelihood of the targets, over their number. A batch: that of `batches.py`, on the model's device."""
        x = self.decoder.embed_tokens(batch["tokens"])
        if batch["images"] is not None:
            visual = ways.part(self.connector, self.features(batch["images"], ways))
            x = ways.part(place_visual, x, visual, batch["slot"])
        hidden = self.decoder(x, batch["positions"], batch_mask(batch), ways)
        return self.decoder.loss(hidden, batch["chosen"], batch["targets"], ways) / batch["count"]


def place_visual(text: Tensor, visual: Tensor, slot: Tensor) -> Tensor:
    """Embeddings [B, T, D], at the visual tokens those [B * I, L, D] of the images that `slot` [B, T] points to."""
    visual = visual.reshape(text.shape[0], -1, visual.shape[-1])
    placed = visual.gather(1, slot.clamp(min=0)[..., None].expand(-1, -1, visual.shape[-1]))
    return torch.where((slot >= 0)[..., None], placed, text)


def batch_mask(batch: dict[str, Any]) -> Tensor | None:
    """[B, 1, T, T] booleans of packed rows; None where rows are causal and nothing else."""
    if batch["segment_ids"] is None:
        return None
    segments, prefixes = batch["segment_ids"], batch["prefix_segment_ids"]
    order = torch.arange(segments.shape[1], device=segments.device)
    own = (segments[:, :, None] == segments[:, None]) & (order[:, None] >= order)
    shared = (prefixes[:, :, None] == segments[:, None]) & (prefixes[:, :, None] > 0)
    return (own | shared)[:, None]
