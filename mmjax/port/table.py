"""Which tensors became which, for people: one line for each rule of the table between two forms of a model."""

import itertools
import re
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mmjax.training.logging import print_line
from mmjax.weights.pretrained_protocol import TensorMapping

SHOWN = 12
_WIDTH = 200  # where the output is no terminal, and nothing has to be folded
_SHORT = {"float32": "f32", "bfloat16": "bf16", "float16": "f16", "float64": "f64"}

type Pair = tuple[TensorMapping | None, TensorMapping | None]


def show(
    console: Console,
    before: Sequence[TensorMapping],
    after: Sequence[TensorMapping],
    unused: Sequence[str],
) -> None:
    """Prints a line for each parameter, where it was and where it is now, under the name of the part that they share; then the tensors that
    are not part of the model."""
    sources, targets = ({each.param_path: each for each in side} for side in (before, after))
    pairs = [(sources.get(path), targets.get(path)) for path in sources | targets]

    def prefixes(pair: Pair) -> tuple[str, str]:
        return _prefix(pair[0]), _prefix(pair[1])

    pairs.sort(key=lambda pair: (prefixes(pair), *(side.name if side else "" for side in pair)))
    table = Table.grid(padding=(0, 3, 0, 0))
    for _ in range(4):
        table.add_column(overflow="fold")
    for (left_prefix, right_prefix), group in itertools.groupby(pairs, prefixes):
        found = list(group)
        if left_prefix or right_prefix:
            left_count, right_count = (
                f"{side.count} of each" if side is not None and side.count > 1 else ""
                for side in found[0]
            )
            heading = (left_prefix, left_count, right_prefix, right_count)
            table.add_row(*(Text(text, style="bold") for text in heading))
        for left, right in found:
            table.add_row(
                *_cells(left, left_prefix, "of ones and zeros"),
                *_cells(right, right_prefix, "merged into its matrix"),
            )
    if not console.is_terminal:
        console = Console(file=console.file, width=_WIDTH)
    console.print(table, highlight=False)
    if unused:
        print_line(console, f"Not used by the model, skipped: {listed(unused)}")


def listed(names: Iterable[str]) -> str:
    """Names in one line, those of many layers as one, and how many more there are."""
    names = list(dict.fromkeys(re.sub(r"(?<=\.)\d+(?=\.)", "*", name) for name in names))
    more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _prefix(mapping: TensorMapping | None) -> str:
    """The beginning of the names of many tensors, "model.layers.{layer}." or "decoder/layers/"; "" where there is but one."""
    if mapping is None:
        return ""
    if "}" in mapping.name:
        return mapping.name[: mapping.name.rindex("}") + 2]
    first, found, _ = mapping.name.partition("/layers/")
    return first + found if found else ""


def _cells(mapping: TensorMapping | None, prefix: str, otherwise: str) -> tuple[Text, Text]:
    """Name, dtype and shape of one side; `otherwise` if there is none."""
    if mapping is None:
        return Text(f"({otherwise})", style="dim"), Text()
    name = mapping.name.removeprefix(prefix) + (f" ({mapping.part})" if mapping.part else "")
    shape = ", ".join(map(str, mapping.shape))
    return Text("  " * bool(prefix) + name), Text(
        f"{_SHORT.get(mapping.dtype, mapping.dtype)}[{shape}]", style="dim"
    )
