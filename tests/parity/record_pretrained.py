"""Checkpoints of every family as transformers writes them, tiny and with random weights, and what transformers computes with them.

Writes one folder per case to references/pretrained, or OUTPUT: config.json, the weights, and recorded.npz with inputs and outputs. A folder
CASE_published holds the same function under names and settings that published checkpoints have and transformers no longer writes,
CASE_sharded the same weights in several files.
"""

import pathlib
import shutil
import sys

import numpy as np
import torch
import transformers
from pretrained_decoders import CASES as DECODERS
from pretrained_decoders import make_decoder, record_decoder
from pretrained_encoders import CASES as ENCODERS
from pretrained_encoders import make_encoder, make_llava, record_encoder, record_llava
from pretrained_published import PUBLISHED, publish
from recording import REFERENCES, metadata

SEED = 11
SHARDED = "llama_tied"


def store(
    model: torch.nn.Module, folder: pathlib.Path, processor: object = None
) -> torch.nn.Module:
    """Writes a checkpoint and reads it again: recorded is what transformers computes in float32 with what is in the file."""
    model.save_pretrained(folder)
    if processor is not None:
        processor.save_pretrained(folder)
    return (
        type(model).from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    )


def save(folder: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    """The arrays of a case, beside its weights."""
    np.savez_compressed(folder / "recorded.npz", metadata=metadata(__file__, SEED), **arrays)


def main(output: pathlib.Path) -> None:
    shutil.rmtree(output, ignore_errors=True)
    for name, (kind, settings) in DECODERS.items():
        model = make_decoder(kind, settings, SEED)
        if name == SHARDED:
            model.save_pretrained(output / f"{name}_sharded", max_shard_size="6KB")
        model = store(model, output / name)
        save(output / name, record_decoder(model, SEED))
    for name, case in ENCODERS.items():
        model = store(make_encoder(case, SEED), output / name, case.processor)
        save(output / name, record_encoder(model, case, SEED))
    model, processor = make_llava(SEED)
    model = store(model, output / "llava", processor)
    save(output / "llava", record_llava(model, processor, SEED))
    for name in PUBLISHED:
        publish(output, name)
    for path in output.glob("*/*"):
        path.chmod(0o644)  # transformers lets the owner alone read its files


if __name__ == "__main__":
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    main(pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else REFERENCES / "pretrained")
