"""Accelerators as data: what one has of memory, and what it computes at most. Nothing heavy is imported here.

Peaks are dense bfloat16 with float32 sums, as the vendors state them: NVIDIA's data sheets of A100, H100, H200, L4, L40S, DGX B200 and
GB200 NVL72 (which print twice as much "with sparsity", and the last two sums over all GPUs) and its white paper on the Ada architecture
(RTX 4090); Google Cloud's pages on TPU v4, v5e, v5p and v6e. A CPU has no such number: what it reaches depends on its clock, on how many
cores are free, and on the library.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """An accelerator.

    Attributes:
        memory: bytes.
        flops: dense bfloat16 FLOP/s.
        kind: a regular expression for what jax calls it (`Device.device_kind`).
    """

    memory: float
    flops: float
    kind: str


# By the name that --topology has for it. A device is the first whose `kind` is found in what jax says.
DEVICES = {
    "a100-40gb": Device(40e9, 312e12, r"A100.*40GB"),
    "a100": Device(80e9, 312e12, r"A100"),
    "h100-pcie": Device(80e9, 756e12, r"H100 PCIe"),
    "h100-nvl": Device(94e9, 835e12, r"H100 NVL"),
    "h100": Device(80e9, 989e12, r"H100"),
    "h200-nvl": Device(141e9, 835e12, r"H200 NVL"),
    "h200": Device(141e9, 989e12, r"H200"),
    "gb200": Device(186e9, 2500e12, r"\bGB200"),
    "b200": Device(180e9, 2250e12, r"\bB200"),
    "l4": Device(24e9, 121e12, r"\bL4$"),
    "l40s": Device(48e9, 362.05e12, r"\bL40S"),
    # Not that of a laptop, nor the 4090 D: both are slower.
    "rtx4090": Device(24e9, 165.2e12, r"RTX 4090$"),
    "v4": Device(32 * 2**30, 275e12, r"TPU v4$"),
    "v5e": Device(16 * 2**30, 197e12, r"TPU v5 ?(lite|e)"),
    "v5p": Device(95 * 2**30, 459e12, r"TPU v5p?$"),
    "v6e": Device(32 * 2**30, 918e12, r"TPU v6"),
}


def plain_name(name: str) -> str:
    """A name as `DEVICES` has it, however it is spelt: "RTX 4090" -> "rtx4090", "h100_pcie" -> "h100-pcie"; others in lower case."""

    def bare(text: str) -> str:
        return re.sub(r"[-_ ]", "", text.lower())

    return next((known for known in DEVICES if bare(known) == bare(name)), name.lower())


def of_kind(kind: str) -> Device | None:
    """The device that jax calls `kind`, such as "NVIDIA H100 80GB HBM3"; None if it is not known."""
    return next(
        (device for device in DEVICES.values() if re.search(device.kind, kind, re.IGNORECASE)), None
    )
