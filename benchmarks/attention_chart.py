"""The figures of the attention benchmark as one SVG image: bars by shape and implementation, bounds as lines."""

from attention_table import tera
from attention_timing import quartiles
from bar_chart import Panel, image

from mmjax.report.html import Html

_COLOURS = {
    "mosaic_gpu": "#b3261e", "mosaic_gpu_fused": "#f2994a", "default": "#b3261e", "xla_chunked": "#8e44ad", "cudnn": "#2f6f3e",
    "torch_cudnn": "#1f5fa8", "torch_flash": "#5aa0e0", "torch_flex": "#0f3057", "torch_sdpa": "#1f5fa8", "xla": "#9a9a9a",
    "jax_nn": "#2f6f3e", "tokamax": "#c9a400",
}  # fmt: skip


def panels(record: dict) -> list[Panel]:
    """One for each direction, and one for the memory where the record has it."""
    scale, unit = (1.0, "TFLOP/s") if "ceilings" in record else (1e3, "GFLOP/s")
    found = []
    for direction in record["directions"]:
        groups, bounds = [], {}
        for entry in record["cases"]:
            case, results = entry["case"], entry["directions"].get(direction, {})
            medians = {
                name: quartiles(result["seconds"])[1]
                for name, result in results.items()
                if result.get("seconds")
            }
            groups.append(
                (
                    case.name,
                    {
                        name: scale * tera(case, direction, seconds)
                        for name, seconds in medians.items()
                    },
                )
            )
            if "ceilings" in record:
                bounds[case.name] = tera(case, direction, case.least_seconds(direction))
        found.append(Panel(direction, unit, tuple(groups), bounds))
    if memory := record.get("memory"):
        lengths = [*next(iter(memory.values()))]
        groups = [
            (f"S = {length}", {name: sizes[length] / 2**20 for name, sizes in memory.items()})
            for length in lengths
        ]
        found.append(Panel("temporaries of the gradient", "MiB", tuple(groups), logarithmic=True))
    return found


def draw(record: dict) -> Html:
    """The image. There is at least one case."""
    return image(
        panels(record),
        f"Attention, {record['device']}, {record['date']}",
        _COLOURS,
        label="useful FLOPs per second of attention by shape and implementation",
        line="line: the bound of 790 TFLOP/s or 4.3 TB/s",
    )
