"""Models and datasets of the Hugging Face Hub, by name: found in the cache of huggingface_hub, or downloaded into it."""

import dataclasses
import errno
import fnmatch
import functools
import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from mmjax.errors import InputError
from mmjax.recipe.recipe import PARTS

PREFIX = "hf:"

# What mmjax reads of a model. Pickles stay where they are, and so do weights under other names, of which there may be several sets.
_SETTINGS = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.json",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
)
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors")
_FILES = (".gguf", ".safetensors", ".json", ".model")  # a path that ends so is no folder

_SECONDS = 10  # within which the Hub must answer
_SHOWN = 4  # names in a message


@functools.cache
def _package() -> ModuleType:
    """huggingface_hub, which takes 0.3 s to import. What it would warn of (slow downloads without a token, retries) is not said."""
    importlib.import_module("huggingface_hub.utils").logging.set_verbosity_error()
    return importlib.import_module("huggingface_hub")


@dataclasses.dataclass(frozen=True)
class _Wanted:
    """What to bring.

    Attributes:
        text: as the user wrote it.
        repository: repo_id, repo_type and revision.
        path: of a file or folder of the repository; "" for its top.
        needed: patterns of names; without a file that fits one, nothing can be done.
        others: patterns of what comes with these files.
    """

    text: str
    repository: dict[str, Any]
    path: str
    needed: list[str]
    others: list[str]

    @property
    def patterns(self) -> list[str]:
        return [*self.needed, *self.others]


def locate(text: str, *, weights: bool = True, download: bool = True) -> Path:
    """Where something of the Hub lies on this machine. The Hub is asked only if a part of it is not there yet, or might not be.

    Args:
        text: "hf:OWNER/NAME" for a model, "hf:OWNER/NAME@REVISION" for a branch, tag or commit of it, "hf:OWNER/NAME/FILE" for one file or
            folder with the settings beside it; "hf:datasets/OWNER/NAME" for a dataset.
        weights: with the weights of a model; False: only what a tokenizer may need.
        download: what is not there is brought; False: it is refused, with the command that brings it.

    Raises InputError if it cannot be had.
    """
    wanted = _parse(text, weights)
    # Of a repository that was never listed, nobody knows what is missing.
    found = _find(wanted) if not download or _listed(wanted) is not None else None
    if found is None and not download:
        raise InputError(f"{text} has not been fetched yet. Run: python -m mmjax.fetch {text}")
    return bring(text, weights=weights) if found is None else found


def bring(text: str, *, weights: bool = True) -> Path:
    """As `locate`, but the Hub is asked for what is newest; without a network, what is there will do."""
    package, wanted = _package(), _parse(text, weights)
    errors = package.errors
    try:
        info = package.HfApi().repo_info(**wanted.repository, files_metadata=True, timeout=_SECONDS)
        commit = wanted.repository | {"revision": info.sha}
        missing = {
            file.rfilename: file.size or 0
            for file in info.siblings or ()
            if _fits(file.rfilename, wanted.patterns)
            and not package.try_to_load_from_cache(filename=file.rfilename, **commit)
        }
        if missing:
            size, cache = sum(missing.values()) / 1e6, package.constants.HF_HUB_CACHE
            print(f"{text}: downloading {size:,.1f} MB into {cache}", file=sys.stderr, flush=True)
        for name in missing:  # in this thread, where Ctrl-C reaches it
            package.hf_hub_download(filename=name, **commit)
        with package.utils.disable_progress_bars():
            folder = package.snapshot_download(**wanted.repository, allow_patterns=wanted.patterns)
    except (errors.HTTPError, OSError) as error:
        unreachable = not isinstance(error, errors.HfHubHTTPError)
        if unreachable and (found := _find(wanted)) is not None:
            return found
        raise InputError(f"{text} cannot be downloaded: {_reason(wanted, error)}") from None
    return _checked(wanted, Path(folder))


def _parse(text: str, weights: bool) -> _Wanted:
    package = _package()
    try:
        uri = package.parse_hf_uri(f"hf://{text.removeprefix(PREFIX).lstrip('/')}")
    except package.errors.HfUriError as error:
        raise InputError(
            f"{text!r} is not hf:OWNER/NAME, hf:OWNER/NAME@REVISION or hf:OWNER/NAME/FILE: {error.msg}"
        ) from None
    if uri.type not in ("model", "dataset"):
        raise InputError(f"{text} is a {uri.type}; mmjax reads models and datasets.")
    repository = {"repo_id": uri.id, "repo_type": uri.type, "revision": uri.revision}
    path = uri.path_in_repo.rstrip("/")
    wanted = functools.partial(_Wanted, text, repository, path)
    if uri.type == "dataset":
        return wanted([path, f"{path}/*"] if path else ["*"], [])
    if path.endswith(_FILES):
        above = path.rpartition("/")[0]
        beside = [*_SETTINGS, *(_WEIGHTS if path.endswith(".index.json") else ())]
        return wanted([path], [f"{above}/{name}".lstrip("/") for name in beside])
    if path:
        names = [path, *(f"{path}/{name}" for name in (*_SETTINGS, *(_WEIGHTS if weights else ())))]
        return wanted(names, [])
    # At the top, or in the three folders of a model that `save_pretrained` wrote.
    folders = ("", *(f"{part}/" for part in PARTS))
    settings = [folder + name for folder in folders for name in _SETTINGS]
    if not weights:
        return wanted(settings, [])
    return wanted([folder + name for folder in folders for name in _WEIGHTS], settings)


def _find(wanted: _Wanted) -> Path | None:
    """Where it is in the cache, unless it is known that a part of it is not there."""
    package = _package()
    try:
        folder = package.snapshot_download(
            **wanted.repository, allow_patterns=wanted.patterns, local_files_only=True
        )
    except package.errors.LocalEntryNotFoundError:
        return None
    return _checked(wanted, Path(folder))


def _checked(wanted: _Wanted, folder: Path) -> Path:
    """The path within a snapshot. Raises InputError if the repository does not have what is needed."""
    listed, name = _listed(wanted), wanted.repository["repo_id"]
    if listed is None or any(_fits(file, wanted.needed) for file in listed):
        return folder / wanted.path
    if wanted.path:
        raise InputError(f"{wanted.text}: there is no {wanted.path} in {name}.")
    found = [file for file in listed if file.endswith((".gguf", ".safetensors"))]
    if not found:
        raise InputError(
            f"{wanted.text}: {name} has no model.safetensors, and no GGUF file. Pickles (*.bin) are not read: loading one runs what its "
            "author put in."
        )
    more = ", ..." if len(found) > _SHOWN else ""
    raise InputError(
        f"{wanted.text}: {name} has no model.safetensors. Name the file that is meant, such as {PREFIX}{name}/{found[0]}, of: "
        f"{', '.join(found[:_SHOWN])}{more}."
    )


def _listed(wanted: _Wanted) -> list[str] | None:
    """All files of the repository, if a download has listed them."""
    package = _package()
    try:
        return [file.path for file in package.get_cached_repo_tree(**wanted.repository)]
    except package.errors.CachedRepoTreeNotFoundError:
        return None


def _fits(name: str, patterns: list[str]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def _reason(wanted: _Wanted, error: Exception) -> str:
    """What went wrong, and what to do. The text of the error is not shown: it may have addresses that are signed."""
    package, name = _package(), wanted.repository["repo_id"]
    errors, endpoint = package.errors, package.constants.ENDPOINT
    log_in = "`hf auth login`, or the variable HF_TOKEN, tells who you are"
    match error:
        case errors.GatedRepoError():
            return f"its owner has to grant access. Ask for it at {endpoint}/{name}; {log_in}."
        case errors.RepositoryNotFoundError():
            return f"there is no {name} at {endpoint}, or it is private; {log_in}."
        case errors.RevisionNotFoundError():
            return f"{name} has no branch, tag or commit {wanted.repository['revision']!r}."
        case errors.HfHubHTTPError() if error.response.status_code in (401, 403):
            return f"{endpoint} denies access ({error.response.status_code}); {log_in}."
        case errors.HfHubHTTPError():
            return f"{endpoint} answers {error.response.status_code}. Try again later."
        case OSError() if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return f"there is no space left in {package.constants.HF_HUB_CACHE}."
        case OSError() if error.errno in (errno.EACCES, errno.EROFS):
            return f"{package.constants.HF_HUB_CACHE} cannot be written: {error.strerror}."
    off = isinstance(error, errors.OfflineModeIsEnabled)
    return (
        f"{'HF_HUB_OFFLINE is set' if off else f'{endpoint} does not answer'}, and the cache {package.constants.HF_HUB_CACHE} does not "
        f"have it. Where there is a network, run `python -m mmjax.fetch {wanted.text}` and copy the cache, or give a folder."
    )
