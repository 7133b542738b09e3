"""Published models: read from and written to the files that their tools use.

decoder = mmjax.weights.load_pretrained("path/to/folder or file.gguf")
mmjax.weights.save_pretrained(decoder, "out")
"""

from mmjax.weights.load import load_pretrained, open_pretrained
from mmjax.weights.save import save_params, save_pretrained

__all__ = ["load_pretrained", "open_pretrained", "save_params", "save_pretrained"]
