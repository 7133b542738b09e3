"""Operations with more than one implementation: one folder each, chosen by name or by what the hardware serves best."""

from mmjax.kernels.attention import IntervalMask, attention

__all__ = ["IntervalMask", "attention"]
