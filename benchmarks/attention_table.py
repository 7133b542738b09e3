"""The figures of the attention benchmark as Markdown."""

import statistics

from attention_cases import Case
from attention_timing import quartiles

BLOCKWISE = ("torch_flex",)  # opponents that skip what a mask hides
PER_ROUND = "median over rounds"


def tera(case: Case, direction: str, seconds: float) -> float:
    """Useful TFLOP/s."""
    return case.flops(direction) / seconds / 1e12


def best(results: dict[str, dict], names: list[str]) -> str | None:
    """The name with the least median."""
    timed = [name for name in names if results[name].get("seconds")]
    return min(timed, key=lambda name: statistics.median(results[name]["seconds"]), default=None)


def ratio(results: dict[str, dict], name: str, other: str | None) -> float | None:
    """How many times as fast as the other one: the median of the rounds' ratios. Both have run in them."""
    if other is None or not results[name].get("seconds"):
        return None
    # One may have failed midway.
    pairs = zip(results[other]["seconds"], results[name]["seconds"], strict=False)
    return statistics.median(theirs / own for theirs, own in pairs)


def must(case: Case, direction: str, results: dict[str, dict], name: str, ours: list[str]) -> str:
    """What has to be reached, and whether it is. Only for what mmjax is measured with."""
    if name not in ours or not results[name].get("seconds"):
        return ""
    if (least := case.must.get(direction)) is not None:
        reached = tera(case, direction, statistics.median(results[name]["seconds"]))
        return f"{least} TFLOP/s: {'met' if reached >= least else 'NOT met'}"
    if (times := case.must_dense.get(direction)) is not None:
        faster = ratio(
            results,
            name,
            best(results, [other for other in results if other not in (*ours, *BLOCKWISE)]),
        )
        verdict = (
            "no dense opponent ran"
            if faster is None
            else f"{faster:.1f}, {'met' if faster >= times else 'NOT met'}"
        )
        return f"{times} x the dense ones: {verdict}"
    return ""


def lines(record: dict) -> list[str]:
    """Tables by shape and direction."""
    gpu = "ceilings" in record
    unit, scale = ("TFLOP/s", 1.0) if gpu else ("GFLOP/s", 1e3)
    columns = [
        "implementation",
        "ms: median (quartiles)",
        unit,
        "times as fast as the best opponent",
    ]
    columns += ["of the bound", "of the measured ceilings", "must"] if gpu else []
    found = []
    for entry in record["cases"]:
        case = entry["case"]
        for direction, results in entry["directions"].items():
            found += ["", f"{case.title} (`{case.name}`), {direction}", ""]
            found += [
                "| " + " | ".join([*columns, "remarks"]) + " |",
                "|" + "---|" * (len(columns) + 1),
            ]
            found += [
                f"| {' | '.join(_row(record, case, direction, results, name, scale))} |"
                for name in results
            ]
    return found[1:]


def _row(
    record: dict, case: Case, direction: str, results: dict[str, dict], name: str, scale: float
) -> list[str]:
    gpu = "ceilings" in record
    result = results[name]
    if not result.get("seconds"):
        return [name, *["-"] * (6 if gpu else 3), _clean(result["error"])]
    first, middle, third = quartiles(result["seconds"])
    opponent = best(results, [other for other in results if other not in record["ours"]])
    against = ratio(results, name, opponent)
    cells = [
        name,
        f"{1e3 * middle:.4g} ({1e3 * first:.4g}-{1e3 * third:.4g})",
        f"{scale * tera(case, direction, middle):.3g}",
    ]
    cells.append(
        "-" if against is None else f"{against:.2f}" + ("" if name != opponent else " (itself)")
    )
    if gpu:
        least = (
            case.least_seconds(direction),
            case.least_seconds(
                direction, record["ceilings"]["flops"], record["ceilings"]["bandwidth"]
            ),
        )
        cells += [
            *(f"{seconds / middle:.0%}" for seconds in least),
            must(case, direction, results, name, record["ours"]),
        ]
    failed = (
        f"failed after {len(result['seconds'])} rounds: {_clean(result['error'])}"
        if "error" in result
        else ""
    )
    return [*cells, ", ".join(filter(None, (result.get("remark", ""), failed)))]


def _clean(text: str) -> str:
    return text.replace("|", "/")


def memory_lines(memory: dict[str, dict[str, int]]) -> list[str]:
    """Temporaries of the compiled gradient, {name: {length: bytes}}, and how they grow from the shortest to the longest."""
    lengths = [*next(iter(memory.values()))]
    head = [f"S = {length}" for length in lengths]
    found = [
        "| implementation | " + " | ".join(head) + " | growth |",
        "|---|" + "---|" * (len(head) + 1),
    ]
    for name, sizes in memory.items():
        written = " | ".join(f"{sizes[length] / 2**20:.1f} MiB" for length in lengths)
        found.append(f"| {name} | {written} | {growth(sizes)} |")
    return found


def growth(sizes: dict[str, int]) -> str:
    """ "linear" where memory grows no more than 1.2 times as much as the length."""
    (short, least), *_, (long, most) = sizes.items()
    times, length = most / max(least, 1), int(long) / int(short)
    return f"{times:.1f} times over {length:.0f} times the length: " + (
        "linear" if times <= 1.2 * length else "not linear"
    )
