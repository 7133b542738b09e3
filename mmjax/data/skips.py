"""Samples that cannot be used: counted by cause, and too many of them stop the run."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from absl import logging

from mmjax.errors import InputError

MINIMUM = 100
"""The share of skipped samples is not judged on fewer samples than these, unless there are no more."""
SHOWN = 5
"""Skipped samples of each cause that are named in the log."""


@dataclass
class Report:
    """What happened to some samples. A sample is one branch of an example: a caption, a question, or a conversation.

    Attributes:
        seen: samples read, skipped ones included.
        causes: skipped samples by cause.
        details: what was wrong, once per picture or record, for the log.
    """

    seen: int = 0
    causes: Counter[str] = field(default_factory=Counter)
    details: list[tuple[str, str]] = field(default_factory=list)

    def skip(self, cause: str, detail: str, samples: int = 1) -> None:
        """Counts samples as skipped (they are counted as seen elsewhere)."""
        self.causes[cause] += samples
        if sum(known == cause for known, _ in self.details) < SHOWN:
            self.details.append((cause, detail))

    @property
    def skipped(self) -> int:
        """Number of skipped samples."""
        return self.causes.total()

    @property
    def examples(self) -> dict[str, str]:
        """The first skipped sample of each cause, and what is wrong with it."""
        return dict(reversed(self.details))


class Skips:
    """Sums up reports, and holds them against a budget.

    Attributes:
        total: samples seen and skipped.
        examples: the first skipped sample of each cause, and what is wrong with it.
    """

    def __init__(self, budget: float, what: str):
        """budget: the share of samples that may be skipped. what: names the data in messages."""
        self.total = Report()
        self.examples: dict[str, str] = {}
        self._budget = budget
        self._what = what
        self._logged: Counter[str] = Counter()

    def add(self, reports: Sequence[Report]) -> None:
        """Adds reports, and names the first skipped samples of each cause in the log."""
        for report in reports:
            self.total.seen += report.seen
            self.total.causes.update(report.causes)
            for cause, detail in report.details:
                self._logged[cause] += 1
                self.examples.setdefault(cause, detail)
                if self._logged[cause] <= SHOWN:
                    logging.warning("%s: skipped (%s) %s", self._what, cause, detail)

    def state(self) -> dict[str, Any]:
        """The counts and the examples, as JSON holds them."""
        return {"seen": self.total.seen, "causes": dict(self.total.causes), "examples": dict(self.examples)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from the counts of an earlier process, as `state` gave them."""
        self.total.seen = state.get("seen", 0)
        self.total.causes = Counter(state.get("causes", {}))
        self.examples = dict(state.get("examples", {}))

    def check(self, *, final: bool = False) -> None:
        """Raises InputError when the skipped share has passed the budget, once MINIMUM samples were seen or when there are no more."""
        seen, skipped = self.total.seen, self.total.skipped
        if skipped > self._budget * seen and (final or seen >= MINIMUM):
            raise InputError(
                f"{self._what}: {skipped:,} of {seen:,} samples cannot be used ({describe(self.total.causes)}), "
                f"more than skip_budget={self._budget:g} allows. Mend the data, or raise skip_budget. For example:\n{listed(self.examples)}"
            )


def describe(causes: Mapping[str, int]) -> str:
    """The counts in words, the largest first."""
    return ", ".join(f"{cause}: {count:,}" for cause, count in Counter(causes).most_common()) or "none"


def listed(examples: Mapping[str, str]) -> str:
    """An example of each cause, a line each."""
    return "\n".join(f"  {cause}: {detail}" for cause, detail in examples.items())
