"""Text from a trained model: decoding, sampling, streaming."""
