"""constraints.txt pins what pyproject.toml names, and compilers that belong to the pinned jax."""

import pathlib
import tomllib
from importlib import metadata

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = pathlib.Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PINNED = dict(
    line.split("==") for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
)
PINNED = {canonicalize_name(name): version for name, version in PINNED.items()}


@pytest.mark.parametrize("extra", ["demo", "dev", "aot", "aot-cuda"])
def test_what_is_installed_for_development_is_pinned(extra):
    wanted = [
        Requirement(text)
        for text in (*PROJECT["dependencies"], *PROJECT["optional-dependencies"][extra])
    ]
    missing = {wish.name for wish in wanted if canonicalize_name(wish.name) not in PINNED}
    assert not missing
    assert all(wish.specifier.contains(PINNED[canonicalize_name(wish.name)]) for wish in wanted)


def test_the_compilers_are_those_of_the_pinned_jax():
    assert (
        PINNED["jax-cuda13-plugin"]
        == PINNED["jax-cuda13-pjrt"]
        == PINNED["jaxlib"]
        == PINNED["jax"]
    )
    if metadata.version("jax") != PINNED["jax"]:
        pytest.skip("another jax is installed, which does not say what the pinned one needs")
    (libtpu,) = (
        wish
        for wish in map(Requirement, metadata.requires("jax"))
        if wish.name == "libtpu" and wish.marker.evaluate({"extra": "tpu"})
    )
    assert libtpu.specifier.contains(PINNED["libtpu"])
