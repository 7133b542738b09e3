"""Samples and the error of an unusable one."""

import pickle

import pytest

from mmjax.data.examples import Example, Image, SampleError, Special, Text


def test_sample_error_survives_pickling_between_processes():
    error = pickle.loads(pickle.dumps(SampleError("corrupt image", "a.png")))
    assert (error.cause, error.detail, str(error)) == (
        "corrupt image",
        "a.png",
        "corrupt image: a.png",
    )


def test_sample_error_without_detail_reads_as_its_cause():
    assert str(SampleError("no answer")) == "no answer"


def test_segments_are_prefix_then_continuations_in_order():
    image, first, second = Image(b""), Text("a", loss=True), Special("eos")
    example = Example((image,), ((first,), (second, first)), "id")
    assert example.segments() == (image, first, second, first)


def test_examples_cannot_be_changed():
    with pytest.raises(AttributeError):
        Text("a").loss = True
