"""python -m mmjax.port: models between Hugging Face, GGUF and Orbax."""
