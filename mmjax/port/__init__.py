"""python -m mmjax.port: models between Hugging Face, GGUF and Orbax."""

DTYPES = ("float32", "bfloat16", "float16")
"""What matrices can be written in."""
FORMS = {"huggingface": "a folder of Hugging Face", "orbax": "a folder of Orbax"}
"""What a model can be converted to."""
