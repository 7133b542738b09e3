"""From text to tokens and targets."""
