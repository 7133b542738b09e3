"""What runs cost, and what one saves against another: measured, planned, or by the closed form."""

from mmjax.ledger.costs import (
    MEASURES,
    Costs,
    Saving,
    StageCost,
    as_json,
    reservations,
    saving,
    share_saved,
)
from mmjax.ledger.formula import PLAIN, REMATERIALISED, Multipliers, break_even, predicted_saving
from mmjax.ledger.reading import costs_of_summary, read

__all__ = [
    "MEASURES",
    "PLAIN",
    "REMATERIALISED",
    "Costs",
    "Multipliers",
    "Saving",
    "StageCost",
    "as_json",
    "break_even",
    "costs_of_summary",
    "predicted_saving",
    "read",
    "reservations",
    "saving",
    "share_saved",
]
