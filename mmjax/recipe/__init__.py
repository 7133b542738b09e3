"""What a run is, as dataclasses, and how they are read and written."""
