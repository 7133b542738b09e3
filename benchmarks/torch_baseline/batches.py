"""Batches as a collate function makes them: from the arrays of mmjax's batches, before any time is taken."""

from typing import Any

import numpy as np
import torch

Batch = dict[str, Any]


def make(arrays: dict[str, np.ndarray], head_positions: int, device: str) -> Batch:
    """One batch, in page-locked memory where it goes to a GPU.

    Args:
        arrays: the fields of mmjax's Batch.
        head_positions: how many positions of all rows the head computes; mmjax computes as many.

    Returns:
        tokens [B, T]; images [B * I, h, w, 3] and slot [B, T], or None; positions, segment_ids and prefix_segment_ids [B, T], each None
        where rows are one causal segment with positions 0, 1, ...; chosen: indices into B * T of the positions with a target, None for
        all; targets at these; count: of targets.
    """
    tokens, targets, segments = (arrays[name] for name in ("tokens", "targets", "segment_ids"))
    _check_images(arrays)
    # Padding behind a causal row changes nothing before it, so that it needs no mask.
    plain = bool(
        (segments <= 1).all()
        and not arrays["prefix_segment_ids"].any()
        and (np.diff(segments, axis=1) <= 0).all()
    )
    counted = bool((arrays["positions"] == np.arange(tokens.shape[1]))[segments > 0].all())
    chosen = None
    if head_positions < targets.size:
        chosen = np.flatnonzero(targets.ravel() >= 0)
        assert len(chosen) <= head_positions, (
            f"{len(chosen)} targets for {head_positions} positions"
        )
        unused = np.flatnonzero(targets.ravel() < 0)[: head_positions - len(chosen)]
        chosen = np.sort(np.concatenate([chosen, unused]))
    images = arrays["images"]
    found = {
        "tokens": tokens,
        "images": images.reshape(-1, *images.shape[2:]) if images.shape[1] else None,
        "slot": arrays["visual_embedding_index"] if images.shape[1] else None,
        "positions": None if plain and counted else arrays["positions"],
        "segment_ids": None if plain else segments,
        "prefix_segment_ids": None if plain else arrays["prefix_segment_ids"],
        "chosen": chosen,
        "targets": targets.ravel() if chosen is None else targets.ravel()[chosen],
        "count": np.float32((targets >= 0).sum()),
    }
    return {
        name: None if value is None else _tensor(np.asarray(value), device)
        for name, value in found.items()
    }


def _check_images(arrays: dict[str, np.ndarray]) -> None:
    """mmjax puts zeros where a slot points to an image that is not there; no batch of this benchmark has one."""
    slot, held = arrays["visual_embedding_index"], arrays["image_mask"]
    named = np.unique(slot[slot >= 0])
    visual = -(-int(named.max() + 1) // held.shape[1]) if len(named) else 1
    rows, columns = np.nonzero(slot >= 0)
    assert held[rows, slot[rows, columns] // visual].all(), (
        "a visual token of an image that is not there"
    )


def _tensor(array: np.ndarray, device: str) -> torch.Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    tensor = tensor.long() if tensor.dtype == torch.int32 else tensor
    return tensor.pin_memory() if device == "cuda" else tensor


def to_device(batch: Batch, device: str) -> Batch:
    return {
        name: None if value is None else value.to(device, non_blocking=True)
        for name, value in batch.items()
    }
