"""Attention on Hopper GPUs (compute capability 9.0) in Pallas Mosaic GPU: forward and backward, for masks of intervals."""

from mmjax.kernels.attention.mosaic_gpu.call import attention

__all__ = ["attention"]
