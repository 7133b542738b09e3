"""What every room stands on: files, signals, formats, the process itself."""
