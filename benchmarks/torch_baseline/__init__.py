"""The opponent of `step_time.py`: mmjax's models and training step as PyTorch users write them, from the modules of transformers.

It imports nothing of mmjax. What it is told of a model is the JSON of `step_time_folder.py`: the fields of mmjax's configs, and for every
parameter whether it is trained, at which rate and with which weight decay.
"""
