"""All but one thing is said in pyproject.toml: the config files lie beside the package here, and inside it once it is installed."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["mmjax*"]), "mmjax.configs"],
    package_dir={"mmjax.configs": "configs"},
)
