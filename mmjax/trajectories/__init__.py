"""Where a decoder's prediction settles: what each layer predicts, how far that is from the end, and where it bends."""
