"""Generation: reading a prompt, and each token after it, against what memory allows and against transformers.

    python benchmarks/decode.py [--shapes NAME ...] [--batch 1 8] [--torch_python PYTHON] [--bandwidth BYTES] [--seconds 300] [--out PREFIX]

Writes PREFIX.md and PREFIX.json. Shapes (random weights): small (the decoder of the default recipe), smollm2-135m, and for GPUs 1b
(Llama-3.2-1B) and 8b (Llama-3.1-8B), in float32 on a CPU and in bfloat16 elsewhere.

"mmjax.inference.generate" answers many rows in one compiled loop; "mmjax.chat" (`mmjax.inference.streaming`) reads one row token by token.
"prompt" is the time until the prompt is read, "token" that of each new one after it, "whole" both together.

The bound of a token is the bytes that it must bring from memory (all weights but a table that is only looked up in, and the keys and
values of the tokens before it) at the bandwidth that a sum over a large array reaches here, or at --bandwidth. "reached" is the bound over
the time. What fits into the caches of a CPU can reach more than all of it.

With --torch_python, transformers' `generate` (greedy, static cache, compiled where transformers compiles it) with the same weights runs in
that interpreter, generation about generation; how many tokens of the first row are the same is said. Figures are medians over rounds.
"""

import argparse
import json
import os
import pathlib
import shlex
import statistics
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
FEWEST_ROUNDS = 3


def take_turns(workers: dict, rounds: int, clock) -> dict[str, dict]:
    """{name: {"samples": [one a round]}}; "error" of one that fails, which is out from there on. The first sample compiles: not counted.

    Args:
        workers: by name, what makes a worker; those that cannot be made have an error, too.
    """
    from attention_timing import attempt

    results: dict[str, dict] = {name: {"samples": []} for name in workers}
    made = {}
    for name, make in workers.items():
        if clock.is_up():
            results[name]["error"] = "skipped: the time was up"
        elif attempt(results[name], lambda name=name, make=make: made.update({name: make()})):
            attempt(results[name], made[name].sample)
    for done in range(rounds):
        if done >= FEWEST_ROUNDS and clock.is_up():
            break
        for name, worker in made.items():
            if "error" not in results[name]:
                attempt(
                    results[name],
                    lambda name=name, worker=worker: results[name]["samples"].append(
                        worker.sample()
                    ),
                )
    for name, worker in made.items():
        if worker.tokens is not None:
            results[name]["tokens"] = [list(map(int, row)) for row in worker.tokens]
        if hasattr(worker, "close"):
            worker.close()
    return results


def measure(name: str, options: argparse.Namespace, bandwidth: float, clock) -> list[dict]:
    """A shape at every batch size: bytes, bound, and the samples of every worker."""
    import decode_jax
    import decode_torch
    from decode_shapes import cache_bytes, lower_bound, shapes, weight_bytes

    shape, dtype = shapes()[name], decode_torch.backend()
    params = decode_jax.draw(shape, dtype)
    itemsize = 4 if dtype == "float32" else 2
    lines = []
    with tempfile.TemporaryDirectory() as folder_name:
        folder = pathlib.Path(folder_name)
        same = (
            decode_torch.hand_over(shape, params, dtype, folder) if options.torch_python else False
        )
        for batch in options.batch:
            workers = {
                "mmjax.inference.generate": lambda batch=batch: decode_jax.Loop(
                    shape, params, batch, dtype
                )
            }
            if batch == 1:
                workers["mmjax.chat"] = lambda: decode_jax.Chat(shape, params, dtype)
            if options.torch_python:
                workers["transformers"] = lambda batch=batch: decode_torch.Opponent(
                    options.torch_python, shape, folder, batch, dtype
                )
            weights = weight_bytes(shape.decoder, params, batch)
            cache = cache_bytes(shape.decoder, batch, shape.prompt, shape.new, itemsize)
            line = {
                "shape": name,
                "dtype": dtype,
                "batch": batch,
                "prompt": shape.prompt,
                "new": shape.new,
                "same_weights": same,
            }
            line |= {
                "weight_bytes": weights,
                "cache_bytes": cache,
                "bound": lower_bound(weights + cache, bandwidth),
            }
            lines.append(line | {"workers": take_turns(workers, options.rounds, clock)})
    return lines


def agreement(line: dict, name: str) -> str:
    """How many of the first row's tokens, from its first on, are those of mmjax.inference.generate."""
    ours, theirs = (
        line["workers"].get(worker, {}).get("tokens")
        for worker in ("mmjax.inference.generate", name)
    )
    if (
        name == "mmjax.inference.generate"
        or ours is None
        or theirs is None
        or (name == "transformers" and not line["same_weights"])
    ):
        return ""
    equal = next(
        (
            place
            for place, pair in enumerate(zip(ours[0], theirs[0], strict=True))
            if pair[0] != pair[1]
        ),
        len(ours[0]),
    )
    return f"{equal} of {len(ours[0])}"


def table(lines: list[dict]) -> list[str]:
    """Markdown, a line for each worker at each shape and batch size."""
    found = [
        "| shape | rows | prompt + new | | ms, prompt | ms, token: median (min-max) | tokens a second | ms, bound of a token | reached | "
        "ms, whole | transformers' whole / this, median of rounds | same tokens |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for line in lines:
        size = f"| {line['shape']}, {line['dtype']} | {line['batch']} | {line['prompt']} + {line['new']} |"
        theirs = line["workers"].get("transformers", {}).get("samples", [])
        for name, result in line["workers"].items():
            if "error" in result or not result["samples"]:
                found.append(f"{size} {name} | {result.get('error', 'no round')} | | | | | | | |")
                continue
            token = [sample["token"] for sample in result["samples"]]
            prompt, whole = (
                statistics.median(sample[part] for sample in result["samples"])
                for part in ("prompt", "whole")
            )
            median = statistics.median(token)
            pairs = zip(theirs, result["samples"], strict=False)
            ratios = (
                [other["whole"] / own["whole"] for other, own in pairs]
                if name != "transformers"
                else []
            )
            found.append(
                f"{size} {name} | {1e3 * prompt:.2f} | {1e3 * median:.3f} ({1e3 * min(token):.3f}-{1e3 * max(token):.3f}) | "
                f"{line['batch'] / median:.1f} | {1e3 * line['bound']:.3f} | {line['bound'] / median:.0%} | {1e3 * whole:.1f} | "
                f"{f'{statistics.median(ratios):.2f}' if ratios else ''} | {agreement(line, name)} |"
            )
    return found


def page(record: dict) -> str:
    head = [
        f"# Generation, {record['device']}",
        "",
        f"{record['date']}, jax {record['jax']}.",
        "",
        f"    {record['command']}",
        "",
    ]
    origin = "as stated" if record["bandwidth_stated"] else "as measured"
    return (
        "\n".join(
            [
                *head,
                f"Bandwidth {origin}: {record['bandwidth'] / 1e9:.1f} GB/s.",
                "",
                *table(record["lines"]),
            ]
        )
        + "\n"
    )


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--shapes",
        nargs="+",
        help="by default small and smollm2-135m; on a GPU smollm2-135m, 1b and 8b",
    )
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8], help="rows")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--bandwidth", type=float, help="bytes a second, such as 4.3e12; measured by default"
    )
    parser.add_argument(
        "--torch_python",
        help="an interpreter with torch and transformers; without it there is no opponent",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=300.0,
        help="for all of it; three rounds of what has begun are finished",
    )
    parser.add_argument("--out", help="PREFIX.md and PREFIX.json")
    return parser.parse_args(given)


def main(given: list[str] | None = None) -> int:
    options = arguments(given)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the opponent needs some of it
    from mmjax.base import host

    host.prepare()
    import decode_jax
    import decode_shapes
    import jax
    from attention_timing import Clock

    cpu = jax.default_backend() == "cpu"
    names = options.shapes or (["small", "smollm2-135m"] if cpu else ["smollm2-135m", "1b", "8b"])
    if unknown := sorted(set(names) - set(decode_shapes.shapes())):
        print(
            f"There is no shape {unknown[0]!r}; there are {', '.join(decode_shapes.shapes())}.",
            file=sys.stderr,
        )
        return 2
    if options.bandwidth is not None and not options.bandwidth > 0:
        print(f"--bandwidth is {options.bandwidth}; it must be positive.", file=sys.stderr)
        return 2
    clock = Clock(options.seconds)
    bandwidth = options.bandwidth or decode_jax.bandwidth(2**28 if cpu else 2**32)
    command = shlex.join(
        ["python", "benchmarks/decode.py", *(sys.argv[1:] if given is None else given)]
    )
    record = {
        "date": time.strftime("%Y-%m-%d"),
        "command": command,
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
    }
    record |= {
        "bandwidth": bandwidth,
        "bandwidth_stated": options.bandwidth is not None,
        "lines": [],
    }
    for number, name in enumerate(names):
        clock.begin(len(names) - number)
        lines = measure(name, options, bandwidth, clock)
        record["lines"] += lines
        print("\n".join(["", *table(lines)]), flush=True)
        if options.out:
            pathlib.Path(f"{options.out}.md").write_text(page(record))
            pathlib.Path(f"{options.out}.json").write_text(json.dumps(record, indent=1) + "\n")
        jax.clear_caches()
    return 0


if __name__ == "__main__":
    sys.exit(main())
