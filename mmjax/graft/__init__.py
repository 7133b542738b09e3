"""python -m mmjax.graft: an encoder from a surrogate before the whole language model."""
