"""python -m mmjax.chat: talks with a model."""
