"""Numbers as people read them."""

import math
from collections.abc import Mapping

_PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z", "Y")


def count(value: float) -> str:
    """24000 -> "24,000"."""
    return f"{round(value):,}" if math.isfinite(value) else str(value)


def duration(seconds: float) -> str:
    """0.4 -> "0.4 s", 312 -> "5 min 12 s", 7260 -> "2 h 1 min"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60:,} h {minutes % 60} min"


def hours(seconds: float) -> str:
    """69012 -> "19.17 h"; below an hour as `duration`."""
    return f"{seconds / 3600:,.2f} h" if seconds >= 3600 else duration(seconds)


def operations(flops: float) -> str:
    """1.234e15 -> "1.23 PFLOP"; three digits."""
    return f"{_prefixed(flops)}FLOP"


def quantity(number: float) -> str:
    """4e8 -> "400 M"; below a million as `count`."""
    return _prefixed(number) if number >= 1e6 else count(number)


def _prefixed(number: float) -> str:
    power = 0
    while number >= 999.5 and power < len(_PREFIXES) - 1:
        number /= 1000
        power += 1
    digits = 2 if number < 9.995 else 1 if number < 99.95 else 0
    return f"{number:.{digits}f} {_PREFIXES[power]}"


def percent(share: float, digits: int = 1) -> str:
    """0.981 -> "98.1 %". What is not all, or not none, is never rounded to it."""
    shown = f"{100 * share:.{digits}f}"
    if (share < 1 and float(shown) >= 100) or (share > 0 and float(shown) == 0):
        step = 10.0**-digits
        return f"> {100 - step:.{digits}f} %" if share > 0.5 else f"< {step:.{digits}f} %"
    return f"{shown} %"


def signed_percent(share: float, digits: int = 1) -> str:
    """Of what may be less than nothing: 0.449 -> "44.9 %", -0.2 -> "-20.0 %"."""
    return f"{round(100 * share, digits) + 0.0:.{digits}f} %"  # + 0.0: there is no "-0.0"


def score(value: float, metric: str | None) -> str:
    """What a task scores: a share in percent, or, where the result names another metric, a number of it: (0.431, "CIDEr-D") -> "0.43"."""
    return percent(value) if metric is None else f"{value:.2f}"


def first_of(partial: Mapping[str, int]) -> str:
    """How much of a task was scored: {"images": 20, "of": 1000} -> "the first 20 of 1,000 images"."""
    return f"the first {partial['images']:,} of {partial['of']:,} images"


def plural(number: int, one: str, many: str | None = None) -> str:
    """(2, "stage") -> "2 stages"."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def readable(name: str) -> str:
    """A field or type name in words: "yes_no" -> "yes no", "visual_tokens" -> "visual tokens"."""
    return name.replace("_", " ")
