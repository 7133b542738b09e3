"""What the text of a program says of its arrays."""

import math
import re

# "tensor<1x8x128xbf16>" in StableHLO, "bf16[1,8,128]" in HLO.
_SHAPES = re.compile(r"\btensor<((?:\d+x)+)|\b(?:pred|[a-z]+\d+\w*)\[([\d,]+)\]")


def largest_array(*texts: str) -> int:
    """Elements of the largest array that programs name, in StableHLO or HLO, whether or not it would lie in memory."""
    shapes = {stable or optimised for text in texts for stable, optimised in _SHAPES.findall(text)}
    assert shapes, "a program names arrays"
    return max(math.prod(map(int, re.findall(r"\d+", shape))) for shape in shapes)
