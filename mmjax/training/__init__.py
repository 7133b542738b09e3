"""Training of one stage: the loop, the step, the optimizer, and what is kept of them on disk."""
