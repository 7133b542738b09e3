"""Real weights and pictures that packages ship: what there is, how each comes onto this disk, and how it is made ready."""
