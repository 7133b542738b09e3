"""The figures of the loader's benchmark as Markdown."""

MEGA = 1e6


def page(record: dict, most_wait: float) -> str:
    """All parts that were measured. most_wait: the share of a step that waiting may take."""
    lines = [
        "# The input pipeline",
        "",
        f"{record['date']}, {record['cpus']} processors ({record['processor']}), grain {record['grain']}.",
    ]
    lines += ["", f"    {record['command']}"]
    if found := record.get("rate"):
        lines += [
            "",
            f"Images per second, resized to {record['image_size']} pixels, {record['batch']} rows a batch:",
            "",
            *rate(found),
        ]
    if found := record.get("phases"):
        lines += ["", "Microseconds per image in one thread:", "", *phases(found)]
    if found := record.get("wait"):
        lines += [
            "",
            f"Waiting in {found['config']}, {found['workers']} workers, {found['steps']} steps a stage:",
            "",
            *wait(found["stages"], most_wait),
        ]
    if found := record.get("memory"):
        size = f"{found['images']} images of 640x480, resized to {found['image_size']} pixels, {found['workers']} workers"
        lines += ["", f"Memory of all processes in MB, {size}:", "", *memory(found["lines"])]
    return "\n".join(lines) + "\n"


def named(line: dict) -> str:
    width, height = line["size"]
    return f"{line['form']}, {width}x{height}"


def rate(lines: list[dict]) -> list[str]:
    found = [
        "| images | workers | per second | cores kept busy | per second and core |",
        "|---|---|---|---|---|",
    ]
    for line in lines:
        busy = line["cpu_seconds"] / line["seconds"]
        core = (
            f"{line['images'] / line['cpu_seconds']:.0f}"
            if line["cpu_seconds"]
            else "too short to tell"
        )
        found.append(
            f"| {named(line)} | {line['workers']} | {line['images'] / line['seconds']:.0f} | {busy:.2f} | {core} |"
        )
    return found


def phases(lines: list[dict]) -> list[str]:
    """ "rest" is what the loader's own way takes beyond the phases: the cache, the plan, random numbers."""
    names = list(lines[0]["phases"])
    found = [
        f"| images | {' | '.join(names)} | sum | the loader's own way | rest |",
        "|---" * (len(names) + 4) + "|",
    ]
    for line in lines:
        values = [1e6 * line["phases"][name] for name in names]
        whole = 1e6 * line["whole"]
        cells = " | ".join(
            f"{value:.0f}" for value in [*values, sum(values), whole, whole - sum(values)]
        )
        found.append(f"| {named(line)} | {cells} |")
    return found


def wait(stages: dict[str, dict[str, float]], most: float) -> list[str]:
    found = [
        "| stage | ms a step, waiting | ms a step, the rest | share | in the worst window | s, first batch | must |",
        "|---|---|---|---|---|---|---|",
    ]
    for stage, line in stages.items():
        met = "met" if line["share"] < most else "NOT met"
        cells = f"{1e3 * line['input']:.3f} | {1e3 * line['step']:.2f} | {line['share']:.2%} | {line['most']:.2%} | {line['first']:.1f}"
        found.append(f"| {stage} | {cells} | under {most:.0%}: {met} |")
    return found


def memory(lines: list[dict]) -> list[str]:
    """The figures that flatness is judged by are those while reading: of "pss" where the kernel says it, else of "rss"."""
    kind = "pss" if all("pss" in line["memory"]["reading"] for line in lines) else "rss"
    found = [
        f"| sources | after imports, {kind} | after planning, {kind} | while reading, {kind} | while reading, rss | of the first line |"
    ]
    found.append("|---|---|---|---|---|---|")
    first = lines[0]["memory"]["reading"][kind]
    for line in lines:
        used = line["memory"]
        cells = " | ".join(
            f"{used[when][kind] / MEGA:.0f}" for when in ("imports", "planned", "reading")
        )
        name = f"{line['sources']} JSONL{' + easy-vqa' if line['easy_vqa'] else ''}"
        found.append(
            f"| {name} | {cells} | {used['reading']['rss'] / MEGA:.0f} | {used['reading'][kind] / first:.2f} |"
        )
    return found
