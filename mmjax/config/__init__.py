"""From a config file and the command line to a recipe."""
