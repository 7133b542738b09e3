"""docs/architecture.md is true: its tree is the tree on disk, and imports run downwards as it says."""

import ast
import fnmatch
import functools
import pathlib
import re
from collections.abc import Collection, Iterable, Iterator

import pytest

from mmjax.base.registry import modules_of
from mmjax.models.connectors.base import ConnectorConfig

ROOT = pathlib.Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"
PACKAGE = ROOT / "mmjax"
INDENT = 4
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])

# What a room must not know, beside the order of the layers: other modules of mmjax, and packages.
UNKNOWN = {
    "models": ("optax", "orbax", "mmjax.recipe.recipe"),
    "transitions": ("optax", "orbax", "mmjax.recipe.recipe"),
    "training": ("mmjax.transitions",),
    "data": ("mmjax.models",),
}
# What it may know of that all the same.
KNOWN = {"data": ("mmjax.models.config", "mmjax.models.connectors.base")}


def block(heading: str) -> list[str]:
    """The lines of the fenced block of a section of the page."""
    section = PAGE.read_text(encoding="utf-8").split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    return section.split("```\n")[1].splitlines()


def tree(lines: Iterable[str]) -> Iterator[str]:
    """Paths and patterns that a drawn tree names: indented by folder, names before two spaces, several of them with commas between."""
    folders: list[str] = []
    for line in lines:
        depth, rest = divmod(len(line) - len(line.lstrip()), INDENT)
        assert not rest and depth <= len(folders), f"oddly indented: {line!r}"
        del folders[depth:]
        names = re.split(r" {2,}", line.strip(), maxsplit=1)[0].split(", ")
        yield from ("".join(folders) + name for name in names)
        if names[0].endswith("/"):
            folders.append(names[0])


def modules() -> dict[str, pathlib.Path]:
    """Files of the package by dotted name; a package has the name of its folder."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(tree: ast.AST, known: Iterable[str]) -> Iterator[str]:
    """Names of the modules that a file imports, wherever in the file: `from a import b` is a.b where that is a module, and else a."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level and node.module, "imports name the whole path"
            yield from (
                whole if (whole := f"{node.module}.{alias.name}") in known else node.module
                for alias in node.names
            )


@functools.cache
def imported(module: str) -> tuple[str, ...]:
    return tuple(
        dict.fromkeys(imports(ast.parse(MODULES[module].read_text(encoding="utf-8")), MODULES))
    )


def layer_of(module: str, layers: dict[str, int]) -> int | None:
    """The layer of a module: its own, or else that of the nearest room around it."""
    name = module.removeprefix("mmjax.")
    while name not in layers and "." in name:
        name = name.rpartition(".")[0]
    return layers.get(name)


def upward(module: str, targets: Iterable[str], layers: dict[str, int]) -> list[str]:
    """The imports of a module that lead to a higher layer."""
    own = layer_of(module, layers)
    assert own is not None, f"{module} has no layer in docs/architecture.md"
    return [
        target
        for target in targets
        if target.startswith("mmjax.") and (layer_of(target, layers) or 0) > own
    ]


def layers() -> dict[str, int]:
    return {
        name: number for number, line in enumerate(block("Layering")) for name in line.split(", ")
    }


def find_circle(edges: dict[str, tuple[str, ...]]) -> list[str]:
    """Some circle of imports, or nothing."""
    done: set[str] = set()

    def follow(module: str, path: list[str]) -> list[str]:
        if module in path:
            return path[path.index(module) :]
        if module in done:
            return []
        found = next(
            (
                circle
                for target in edges.get(module, ())
                if (circle := follow(target, [*path, module]))
            ),
            [],
        )
        done.add(module)
        return found

    return next((circle for module in edges if (circle := follow(module, []))), [])


def missing_from_tree(files: Iterable[pathlib.Path]) -> list[str]:
    """The files that the tree neither names nor covers by a pattern such as "connectors/*.py"."""
    names = [name for name in tree(block("The house")) if not name.endswith("/")]
    paths = sorted(path.relative_to(ROOT).as_posix() for path in files)
    return [path for path in paths if not any(fits(path, name) for name in names)]


def fits(path: str, name: str) -> bool:
    return path == name or (
        "*" in name
        and pathlib.PurePath(path).parent == pathlib.PurePath(name).parent
        and fnmatch.fnmatch(path, name)
    )


def test_every_path_of_the_tree_exists():
    assert not [name for name in tree(block("The house")) if not list(ROOT.glob(name.rstrip("/")))]


def test_every_folder_of_the_tree_is_marked_as_one():
    assert not [
        name
        for name in tree(block("The house"))
        if (ROOT / name).is_dir() and not name.endswith("/")
    ]


def test_every_file_of_the_package_is_in_the_tree():
    assert not missing_from_tree(
        path
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.name != "__init__.py"
    )


def test_configs_benchmarks_and_documents_are_in_the_tree():
    assert not missing_from_tree(
        [*ROOT.glob("configs/*.py"), *ROOT.glob("benchmarks/*.py"), *ROOT.glob("docs/*.md")]
    )


def test_the_top_of_the_package_is_the_door_and_what_every_room_knows():
    assert {path.name for path in PACKAGE.iterdir() if path.is_file()} == {
        "__init__.py", "__main__.py", "main.py", "typing.py", "errors.py", "py.typed",
    }  # fmt: skip


def test_every_layer_is_a_module_or_a_room():
    assert not [
        name
        for name in layers()
        if not (PACKAGE / name.replace(".", "/")).is_dir() and f"mmjax.{name}" not in MODULES
    ]


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"mmjax"}))
def test_imports_run_downwards(module: str):
    assert not upward(module, imported(module), layers())


@pytest.mark.parametrize("room", UNKNOWN)
def test_a_room_does_not_know(room: str):
    inside = [module for module in MODULES if module.startswith(f"mmjax.{room}.")]
    assert inside
    found = [
        f"{module} imports {target}"
        for module in inside
        for target in imported(module)
        for unknown in UNKNOWN[room]
        if (target == unknown or target.startswith(f"{unknown}."))
        and target not in KNOWN.get(room, ())
    ]
    assert not found


def test_no_import_runs_in_a_circle():
    assert not find_circle({module: imported(module) for module in MODULES})


def decisions_on_connectors(tree: ast.AST, classes: Collection[str]) -> Iterator[str]:
    """Where code asks which connector it has: isinstance, type, hasattr, match, or a comparison of `kind`."""

    def speaks(node: ast.AST) -> bool:
        names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
        names |= {n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute)}
        return any("connector" in name.lower() or name in classes for name in names)

    for node in ast.walk(tree):
        match node:
            case ast.Call(
                func=ast.Name(id="isinstance" | "issubclass" | "type" | "hasattr" | "getattr")
            ):
                if any(map(speaks, node.args)):
                    yield ast.unparse(node)
            case ast.Match():
                if speaks(node.subject) or any(speaks(case.pattern) for case in node.cases):
                    yield ast.unparse(node.subject)
            case ast.Attribute(value=owner, attr="kind") if speaks(owner):
                yield ast.unparse(node)
            case ast.Compare():
                if speaks(node) and any(
                    "kind" in ast.unparse(side) for side in (node.left, *node.comparators)
                ):
                    yield ast.unparse(node)


def test_nobody_asks_which_connector_it_is():
    classes = {
        name
        for module in modules_of(ConnectorConfig.package)
        for name, value in vars(module).items()
        if isinstance(value, type)
    }
    classes = {
        name for name in classes if name.endswith(("Config", "Connector")) or name == "Resampler"
    }
    assert {"ResamplerConfig", "MLPConfig", "LinearConfig", "Resampler"} <= classes
    outside = {
        m: path for m, path in MODULES.items() if not m.startswith("mmjax.models.connectors")
    }
    found = {
        m: list(decisions_on_connectors(ast.parse(path.read_text(encoding="utf-8")), classes))
        for m, path in outside.items()
    }
    assert not {module: places for module, places in found.items() if places}


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: page.name)
def test_links_lead_somewhere(page: pathlib.Path):
    links = re.findall(r"\]\((?!\w+:)([^)#]+)", page.read_text(encoding="utf-8"))
    assert not [link for link in links if not (page.parent / link).exists()]


def test_the_checks_can_fail():
    """On made-up imports: upwards, within a function, of a module named by its package; and a circle."""
    ground = {"typing": 0, "models.config": 1, "models": 2, "training": 3}
    text = "def f():\n    from mmjax.training import loop\n    from mmjax.models import config\n"
    targets = list(imports(ast.parse(text), {"mmjax.training.loop", "mmjax.models.config"}))
    assert targets == ["mmjax.training.loop", "mmjax.models.config"]
    assert upward("mmjax.models.vlm", targets, ground) == ["mmjax.training.loop"]
    assert upward("mmjax.models.config", ["mmjax.models.vlm"], ground) == ["mmjax.models.vlm"]
    assert not upward("mmjax.training.step", targets, ground)
    asked = [
        "isinstance(model.connector, ResamplerConfig)", "type(c.connector) is X", "hasattr(connector, 'queries')",
        "config.connector.kind == 'mlp'",
        "found = {'mlp': 1}[config.connector.kind]", "found = {ResamplerConfig: 1}.get(type(connector))",
        "match model.connector:\n    case _: pass", "match config:\n    case MLPConfig(): pass",
    ]  # fmt: skip
    assert all(
        any(decisions_on_connectors(ast.parse(text), {"ResamplerConfig", "MLPConfig"}))
        for text in asked
    )
    assert not list(
        decisions_on_connectors(
            ast.parse("connector.build(vision)\nif connector.final_norm: pass"), ()
        )
    )
    assert find_circle({"a": ("b",), "b": ("c",), "c": ("b",)}) == ["b", "c"]
    assert not find_circle({"a": ("b", "c"), "b": ("c",)})
    with pytest.raises(AssertionError, match="oddly indented"):
        list(tree(["a/", "  b.py"]))
