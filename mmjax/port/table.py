"""What went where, for people: one line for each rule of the table between two forms of a model."""

import itertools
import re
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mmjax.weights.pretrained_protocol import TensorMapping

SHOWN = 12
_WIDTH = 200  # of what is no terminal, where nothing has to be folded
_SHORT = {"float32": "f32", "bfloat16": "bf16", "float16": "f16", "float64": "f64"}

type Pair = tuple[TensorMapping | None, TensorMapping | None]


def show(
    console: Console,
    before: Sequence[TensorMapping],
    after: Sequence[TensorMapping],
    unused: Sequence[str],
) -> None:
    """Prints a line for each parameter, what it was and what it is now, under the name of the part that they share; then what was left
    out."""
    sources, targets = ({line.param_path: line for line in lines} for lines in (before, after))
    pairs = [(sources.get(path), targets.get(path)) for path in sources | targets]
    pairs.sort(key=lambda pair: (_prefixes(pair), _name(pair[0]), _name(pair[1])))
    table = Table.grid(padding=(0, 3, 0, 0))
    for _ in range(4):
        table.add_column(overflow="fold")
    for prefixes, group in itertools.groupby(pairs, _prefixes):
        found = list(group)
        if any(prefixes):
            table.add_row(*(Text(text, style="bold") for text in _heading(prefixes, found)))
        for left, right in found:
            table.add_row(
                *_cells(left, prefixes[0], "of ones and zeros"),
                *_cells(right, prefixes[1], "merged into its matrix"),
            )
    if not console.is_terminal:
        console = Console(file=console.file, width=_WIDTH)
    console.print(table, highlight=False)
    if unused:
        console.print(
            f"Not used by the model, left out: {listed(unused)}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )


def listed(names: Iterable[str]) -> str:
    """Names in one line, those of many layers as one, and how many more there are."""
    names = list(dict.fromkeys(re.sub(r"(?<=\.)\d+(?=\.)", "*", name) for name in names))
    more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _prefixes(pair: Pair) -> tuple[str, str]:
    """What stands in front of the names of many: "model.layers.{layer}." or "decoder/layers/"; "" for a name of its own."""
    return _prefix(pair[0]), _prefix(pair[1])


def _name(line: TensorMapping | None) -> str:
    return line.name if line else ""


def _prefix(line: TensorMapping | None) -> str:
    if line is None:
        return ""
    if "}" in line.name:
        return line.name[: line.name.rindex("}") + 2]
    first, found, _ = line.name.partition("/layers/")
    return first + found if found else ""


def _heading(prefixes: tuple[str, str], pairs: Sequence[Pair]) -> list[str]:
    left, right = pairs[0]
    counts = [
        f"{line.count} of each" if line is not None and line.count > 1 else ""
        for line in (left, right)
    ]
    return [prefixes[0], counts[0], prefixes[1], counts[1]]


def _cells(line: TensorMapping | None, prefix: str, otherwise: str) -> tuple[Text, Text]:
    """Name, dtype and shape of one side; `otherwise` if there is none."""
    if line is None:
        return Text(f"({otherwise})", style="dim"), Text()
    name = line.name.removeprefix(prefix) + (f" ({line.part})" if line.part else "")
    shape = ", ".join(map(str, line.shape))
    return Text("  " * bool(prefix) + name), Text(
        f"{_SHORT.get(line.dtype, line.dtype)}[{shape}]", style="dim"
    )
