"""Softmax attention in which every query row sees an interval of keys, and possibly a second one."""

from mmjax.kernels.attention.api import IMPLEMENTATIONS, attention, prefer
from mmjax.kernels.attention.mask import IntervalMask

__all__ = ["IMPLEMENTATIONS", "IntervalMask", "attention", "prefer"]
