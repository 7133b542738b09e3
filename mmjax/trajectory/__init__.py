"""python -m mmjax.trajectory: where a decoder's prediction settles."""
