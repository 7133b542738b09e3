"""The TFDS source on a small set prepared here, read without TensorFlow."""

import dataclasses
import io
import pickle
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image as Pillow

from mmjax.data.examples import SampleError, Text
from mmjax.data.images.decode import load_image
from mmjax.data.sources.tfds import TfdsSource
from mmjax.data.text.templates import TEMPLATES
from mmjax.errors import InputError

tfds = pytest.importorskip("tensorflow_datasets")
CAPTIONS = ["a red circle", "Grüße", b"\xff", "", "a blue circle"]


def image(number):
    return Pillow.fromarray(np.full((6, 6, 3), number * 10, np.uint8))


def png(number):
    data = io.BytesIO()
    image(number).save(data, "PNG")
    return data.getvalue()


class TinyCaptions(tfds.core.GeneratorBasedBuilder):
    """Five images with a caption and a question."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        text = tfds.features.Text()
        features = {"image": tfds.features.Image(), "text": text, "question": text, "answer": text}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for number, text in enumerate(CAPTIONS):
            yield (
                number,
                {"image": png(number), "text": text, "question": "which?", "answer": str(number)},
            )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    tfds.disable_progress_bar()
    TinyCaptions(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


@pytest.fixture
def config(folder):
    return TfdsSource("tfds", name="tiny_captions:1.0.0", data_dir=str(folder), text="text")


def opened(config, **options):
    return config.open(TEMPLATES["plain"], **options)


def number_of(example):
    """Which image an example has: the generator's order is not the stored one."""
    return int(load_image(example.prefix[0].source, 6)[0, 0, 0]) // 10


def by_number(source):
    found = {}
    for index in range(len(source)):
        try:
            found[number_of(source[index])] = [
                part.text
                for continuation in source[index].continuations
                for part in continuation
                if isinstance(part, Text)
            ]
        except SampleError as error:
            found[error.cause] = error.cause
    return found


def test_captions_with_their_images_and_unusable_records_by_cause(config):
    expected = {
        0: ["a red circle"],
        1: ["Grüße"],
        4: ["a blue circle"],
        "bad UTF-8": "bad UTF-8",
        "bad text": "bad text",
    }
    assert by_number(opened(config)) == expected


def test_questions(config):
    source = opened(dataclasses.replace(config, text="", question="question", answer="answer"))
    assert by_number(source) == {number: ["which?", f" {number}"] for number in range(5)}


def test_text_alone_leaves_the_images_out(config):
    source = opened(dataclasses.replace(config, text="answer", image=""))
    assert {source[index].prefix for index in range(5)} == {()} and sorted(source.texts()) == list(
        "01234"
    )


def test_images_stay_encoded_until_they_are_loaded(config):
    source = opened(dataclasses.replace(config, text="answer"))
    assert all(isinstance(source[index].prefix[0].source, bytes) for index in range(5))
    assert {source[index].prefix[0].source for index in range(5)} == {
        png(number) for number in range(5)
    }


def test_holdout_and_split_slices(config):
    config = dataclasses.replace(config, text="answer")
    everything = [number_of(opened(config)[index]) for index in range(5)]
    held = opened(config, holdout=2, part="holdout")
    assert [number_of(held[index]) for index in range(len(held))] == everything[3:]
    assert len(opened(dataclasses.replace(config, split="train[:2]"))) == 2


def test_without_a_version_the_newest_is_opened(config, folder):
    assert len(opened(dataclasses.replace(config, name="tiny_captions"))) == 5
    (folder / "tiny_captions" / "incomplete").mkdir(exist_ok=True)
    assert len(opened(dataclasses.replace(config, name="tiny_captions"))) == 5


def test_a_source_works_after_pickling(config):
    source = opened(config)
    assert by_number(pickle.loads(pickle.dumps(source))) == by_number(source)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "tiny_captions:2.0.0"}, "no version 2.0.0; it has 1.0.0"),
        ({"name": "nowhere"}, "none"),
        ({"data_dir": "/nowhere"}, "data_dir"),
        ({"split": "validation"}, "It has train"),
        ({"text": "caption"}, "no feature caption; it has .*answer"),
        ({"text": ""}, "needs the feature"),
        ({"question": "question"}, "needs the feature"),
    ],
)
def test_a_wrong_config_is_an_input_error(config, change, message):
    with pytest.raises(InputError, match=message):
        opened(dataclasses.replace(config, **change))


def test_another_file_format_is_an_input_error(tmp_path, config):
    class TinyParquet(TinyCaptions):
        """The same in another format."""

    TinyParquet(data_dir=tmp_path, file_format="parquet").download_and_prepare()
    with pytest.raises(InputError, match="file_format='array_record'"):
        opened(dataclasses.replace(config, name="tiny_parquet", data_dir=str(tmp_path)))


def test_tensorflow_is_never_imported(config):
    imports = (
        "import sys\nfrom mmjax.data.sources.tfds import TfdsSource\n"
        "from mmjax.data.text.templates import TEMPLATES\n"
    )
    use = f"{imports}{config!r}.open(TEMPLATES['plain'])[0]\n"
    subprocess.run(
        [sys.executable, "-c", use + "assert not {'tensorflow', 'torch'} & sys.modules.keys()"],
        check=True,
    )
