"""Models from one form into another: what is read, what is said, what is put beside the weights."""
