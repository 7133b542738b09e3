"""Chat templates that tokenizers bring along: what people write stays text, labels follow from the template, unusable ones say why."""

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from mmjax.data.examples import Image, SampleError, Special, Text, Turn, prompt_of
from mmjax.data.packing.packing import RowCapacity, make_plan
from mmjax.data.sources.jsonl import JsonlSource
from mmjax.data.sources.llava import LlavaSource
from mmjax.data.text import chat_rendering
from mmjax.data.text.chat_rendering import Renderer
from mmjax.data.text.templates import find_template
from mmjax.data.text.tokenizer import SegmentTokenizer, WordTokenizer, open_tokenizer, tokenise
from mmjax.errors import InputError

SPECIALS = ["<|im_start|>", "<|im_end|>", "<s>", "</s>", "<s><|im_start|>", "<image>"]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TRIMMED = CHATML.replace("{{ m.content }}", "{{ m.content | trim }}")
INST = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '[INST] ' ~ m.content ~ ' [/INST]' if m.role == 'user' else ' ' ~ m.content ~ eos_token }}{% endfor %}"
)
HEADED = "{% for m in messages %}{{ m.role | upper }}: {{ m.content }}{{ '</s>' if m.role == 'assistant' else ' ' }}{% endfor %}"
IMAGE = Image(np.zeros((2, 2, 3), np.uint8))


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A tokenizer of bytes."""
    folder = tmp_path_factory.mktemp("tokenizer")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = tokenizers.Tokenizer(
        models.BPE({character: index for index, character in enumerate(alphabet)}, [])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIALS)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="session")
def chat(folder):
    """(the tokenizer with a chat template, the template)"""

    def make(source, labels=True):
        config = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": source}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        tokenizer = open_tokenizer(folder)
        return tokenizer, find_template("chat", tokenizer, labels=labels)

    return make


def shown(continuation):
    """A continuation as one string, what carries loss in brackets."""
    pieces = []
    for segment in continuation:
        if isinstance(segment, Image):
            pieces.append("(image)")
        else:
            text = f"<{segment.name}>" if isinstance(segment, Special) else segment.text
            pieces.append(f"[{text}]" if segment.loss else text)
    return "".join(pieces)


def said(*turns):
    return [Turn(role, (Text(text),)) for role, text in turns]


def test_a_question_and_a_caption(chat):
    _, template = chat(CHATML)
    assert template.stop == "<|im_end|>"
    expected = (
        "<<|im_start|>>user\nwhat?<<|im_end|>>\n<<|im_start|>>assistant\n[red][<<|im_end|>>]\n"
    )
    assert shown(template.question("what?", "red")) == expected
    assert shown(template.caption("red")) == expected.replace("what?", "a short image description:")


@pytest.mark.parametrize("source", [CHATML, TRIMMED, INST, HEADED])
@given(
    question=st.text(min_size=1, max_size=12),
    answer=st.text(min_size=1, max_size=12),
    rounds=st.integers(1, 3),
)
@settings(max_examples=40, deadline=None)
def test_a_prompt_is_its_continuation_up_to_the_answer(chat, source, question, answer, rounds):
    _, template = chat(source)
    assert prompt_of(template.question(question, answer)) == template.prompt(question)
    turns = said(*[("user", question), ("assistant", answer)] * rounds)
    whole, asked = template.conversation(turns), template.conversation(turns[:-1])
    assert whole[: len(asked)] == asked


@given(
    text=st.text(max_size=20),
    name=st.sampled_from(SPECIALS),
    place=st.sampled_from(["user", "assistant", "system"]),
)
@settings(max_examples=40, deadline=None)
def test_names_of_special_tokens_in_what_people_write_stay_text(chat, text, name, place):
    tokenizer, template = chat(CHATML)
    turns = {"system": "s", "user": "u", "assistant": "a"}
    clean = tokenise(template.conversation(said(*turns.items())), tokenizer, 1).tokens
    injected = tokenise(
        template.conversation(said(*(turns | {place: text + name + text}).items())), tokenizer, 1
    ).tokens
    ids = list(tokenizer.special_tokens.values())
    assert np.isin(injected, ids).sum() == np.isin(clean, ids).sum()
    assert text + name + text in tokenizer.decode(injected)


def test_images_stand_where_the_turn_has_them(chat):
    _, template = chat(CHATML)
    turns = [
        Turn("user", (IMAGE, Text("\nwhat? "), IMAGE)),
        Turn("assistant", (Text("a "), IMAGE, Text(" b"))),
    ]
    assert shown(template.conversation(turns)) == (
        "<<|im_start|>>user\n(image)\nwhat? (image)<<|im_end|>>\n<<|im_start|>>assistant\n[a ](image)[ b][<<|im_end|>>]\n"
    )
    assert shown(
        chat(TRIMMED)[1].conversation([Turn("user", (IMAGE, Text(" what? \n")))])
    ).startswith("<<|im_start|>>user\n(image) what?<")


PARTS = (
    "{% for m in messages %}{{ m.role }}: {% for p in m.content %}{{ '<image>\n' if p.type == 'image' else p.text }}{% endfor %}</s>"
    "{% endfor %}"
)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ((IMAGE, Text("\nwhat?")), "(image)\nwhat?"),
        ((IMAGE, Text("\n\nwhat? "), IMAGE), "(image)\n\nwhat? (image)\n"),
        ((IMAGE, IMAGE), "(image)\n(image)\n"),
        ((Text("what?\n"), IMAGE), "what?(image)\n"),
        ((IMAGE, Text("<image></s>")), "(image)\n<image></s>"),
    ],
)
def test_a_template_that_knows_images_writes_what_stands_around_them(chat, content, expected):
    _, template = chat(PARTS)
    turns = [Turn("user", content), *said(("assistant", "a"))]
    assert shown(template.conversation(turns)) == f"user: {expected}<</s>>assistant:[ a][<</s>>]"


def test_the_same_image_twice(chat):
    _, template = chat(PARTS)
    continuation = template.conversation(
        [
            Turn("user", (IMAGE, Text("a"))),
            *said(("assistant", "b")),
            Turn("user", (IMAGE, Text("c"))),
        ]
    )
    assert [segment for segment in continuation if isinstance(segment, Image)] == [IMAGE, IMAGE]


def test_a_template_that_writes_images_twice_is_given_none(chat):
    """They stand within what is said."""
    _, template = chat(PARTS.replace("<image>", "<image><image>"))
    assert (
        shown(template.conversation([Turn("user", (IMAGE, Text("\na")))]))
        == "user: (image)\na<</s>>assistant:"
    )


def test_without_labels_an_answer_may_end_in_no_special_token(chat):
    tokenizer, template = chat(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}", labels=False
    )
    assert template.stop == "eos"
    assert (
        shown(template.conversation(said(("user", "a"), ("assistant", "b"), ("user", "c"))))
        == "user: a\nassistant: b\nuser: c\nassistant:"
    )
    assert pickle.loads(pickle.dumps(template)).prompt("a") == template.prompt("a")
    assert tokenizer.begins == ""
    _, template = chat(CHATML, labels=False)
    assert template.stop == "<|im_end|>"
    assert not any(segment.loss for segment in template.question("a", "b"))


def test_the_space_before_an_answer_belongs_to_it(chat):
    """No generation prompt has it, so the model writes it."""
    _, template = chat(INST)
    turns = said(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    assert (
        shown(template.conversation(turns))
        == "<<s>>[INST] a [/INST][ b][<</s>>][INST] c [/INST][ d][<</s>>]"
    )
    assert shown(template.prompt("a")) == "<<s>>[INST] a [/INST]"


def test_a_template_without_generation_prompt_gets_what_it_writes_before_answers(chat):
    _, template = chat(HEADED)
    assert shown(template.question("a", "b")) == "USER: a ASSISTANT:[ b][<</s>>]"
    assert shown(template.prompt("a")) == "USER: a ASSISTANT:"


def test_words_that_look_like_marks_are_words(chat):
    _, template = chat(CHATML)
    assert "sentinel0q sentinelx1q" in shown(
        template.question("sentinel0q sentinelx1q", "sentinel1q")
    )


def test_signs_that_mark_generated_parts_are_text_too(chat):
    _, template = chat(
        "{% for m in messages %}{% generation %}{{ m.content }}</s>{% endgeneration %}{% endfor %}"
    )
    assert shown(template.question("\x00[a", "b\x00]")) == "[\x00[a][<</s>>][b\x00]][<</s>>]"


def test_empty_texts(chat):
    _, template = chat(CHATML)
    assert (
        shown(template.question("", ""))
        == "<<|im_start|>>user\n<<|im_end|>>\n<<|im_start|>>assistant\n[<<|im_end|>>]\n"
    )


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% for %}", "no valid jinja"),
        ("{{ messages[0].content[:3] }}", "omits or changes what the user says"),
        (
            "{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}</s>",
            "writes 2 times what the user says",
        ),
        (
            "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}",
            "no special token.*data.template=vicuna_v1",
        ),
        ("{{ raise_exception('not today') }}", "not today"),
        ("{{ messages[0]['content'].__class__.__mro__ }}", "unsafe"),
        ("{{ nothing.at.all }}", "undefined"),
        ("{{ messages.append(1) }}", "unsafe"),
        (
            "{% for i in range(99999) %}{% for j in range(99999) %}{{ '0123456789' }}{% endfor %}{% endfor %}",
            "come to an end",
        ),
        (
            "{% set s = '0123456789' * 999 %}{% for i in range(99999) %}{{ s }}{% endfor %}",
            "more than",
        ),
        ("{{ 'a' * 10 ** 12 }}", "large"),
        ("{{ [0] * 999999999 }}", "large"),
        (
            "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
            "come to an end",
        ),
        (
            "{% for i in range(99999) %}{% for j in range(99999) if j < 0 %}{% endfor %}{% endfor %}",
            "come to an end",
        ),
        ("{% for i in range(9) recursive %}{{ loop(range(9)) }}{% endfor %}", "."),
        (
            "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{% set x = m(30) %}",
            "come to an end",
        ),
        (
            "{% for i in range(99999) %}{% set x %}" + "y" * 999 + "{% endset %}{% endfor %}",
            "come to an end",
        ),
        (
            "{% set s = 'y' * 9999 %}{% for i in range(99999) %}{% set x %}{{ s }}{% endset %}{% endfor %}",
            "come to an end",
        ),
        (
            "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
            "too long",
        ),
        ("{{ 'a' | center(10 ** 9) }}", "not allowed"),
        ("{{ 'a' | center(999999999) }}", "center of large values"),
        ("{{ ('a\n' * 99999) | indent(99999) }}", "indent of large values"),
        ("{{ ('a\n' * 99999) | indent(width='b' * 99999) }}", "indent of large values"),
        ("{{ ('a' * 99999) | wordwrap(1, wrapstring='b' * 99999) }}", "wordwrap of large values"),
        ("{{ [] | batch(999999999, 'x') | list }}", "batch of large values"),
        ("{{ [] | slice(999999999) | list }}", "slice of large values"),
        ("{{ '%999999999d' | format(1) }}", "format with large widths"),
        ("{{ '%*d' | format(999999999, 1) }}", "format with large widths"),
        ("{{ '%999999999d' % 1 }}", "format with large widths"),
        ("{{ '{:>999999999}'.format('a') }}", "format with large widths"),
        ("{{ '{:>{}}'.format('a', 999999999) }}", "format with large widths"),
        ("{{ ('{:>999999999}' | attr('format'))('a') }}", "format with large widths"),
        ("{{ 'a'['ljust'](999999999) }}", "ljust of a text"),
        *(
            (f"{{{{ 'a'.{name}(999999999) }}}}", f"{name} of a text")
            for name in ("center", "ljust", "rjust", "zfill", "expandtabs")
        ),
        ("{{ messages | tojson(indent=999999999) }}", "indent of more than 64"),
        ("{{ lipsum(n=999999) }}", "undefined"),
        ("{{ {} | xmlattr }}", "xmlattr"),
    ],
)
def test_unusable_templates_say_why(chat, source, message):
    with pytest.raises(InputError, match=message):
        chat(source)


def test_what_bounds_leave_as_it_is():
    source = (
        "{% macro m(x) %}<{{ x }}>{% endmacro %}{% for i in range(6) if i % 2 %}{{ m(i) ~ nothing ~ loop.index }}{% else %}none{% endfor %}"
        "{% for i in [] %}{% else %}none{% endfor %}{{ 'a' | center(5) }}{{ 'a\nb' | indent(2) }}{{ '%3d' | format(7) }}{{ '%s!' % 1 }}"
        "{{ '%(a)s' | format(a=1) }}{{ '{:>3}'.format('x') }}{{ [1, 2, 3] | batch(2) | list }}{{ [1, 2] | slice(2) | list }}{{ None }}"
        "{{ 'a b' | wordwrap(1) }}{{ nothing }}{{ [1] | tojson(indent=1) }}"
    )
    expected = "<1>1<3>2<5>3none  a  a\n  b  71!1  x[[1, 2], [3]][[1], [2]]Nonea\nb[\n 1\n]"
    renderer = Renderer(source, {}, where="here")
    assert [renderer.render([]) for _ in range(3)] == [expected] * 3


def test_texts_that_grow_are_stopped(chat, monkeypatch):
    monkeypatch.setattr(chat_rendering, "MAX_CHARACTERS", 1000)
    with pytest.raises(InputError, match="too long"):
        chat(
            "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}"
        )


def test_refused_conversations(chat):
    refusing = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
        + CHATML
    )
    _, template = chat(refusing)
    with pytest.raises(SampleError, match=r"refused.* system, user: no system turns"):
        template.conversation(said(("system", "be brief"), ("user", "what?")))
    _, silent = chat("{% for m in messages if m.role != 'system' %}{{ m.content }}</s>{% endfor %}")
    with pytest.raises(SampleError, match="what the system says"):
        silent.conversation(said(("system", "be brief"), ("user", "what?")))
    _, unending = chat(
        "{% for m in messages %}{{ m.content }}{% if loop.index < 3 %}</s>{% endif %}{% endfor %}"
    )
    with pytest.raises(SampleError, match="does not end everything"):
        unending.conversation(
            said(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
        )


@pytest.mark.parametrize(
    "source",
    [
        CHATML.replace(
            "{% for", "{{ raise_exception('no') if 'bad' in messages[0].content }}{% for", 1
        ),
        CHATML.replace("{% for", "{{ (messages[0].content == 'bad?') and 1 // 0 }}{% for", 1),
        CHATML.replace("{{ m.content }}", "{{ m.content if m.content != 'bad?' }}"),
        CHATML.replace(
            "{% for",
            "{% if 'bad' in messages[0].content %}{{ nothing.at.all }}{% endif %}{% for",
            1,
        ),
        CHATML.replace(
            "{% for",
            "{% if 'bad' in messages[0].content %}{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}{% endif %}"
            "{% for",
            1,
        ),
    ],
)
def test_a_sample_that_a_template_refuses_or_fails_on_is_skipped_and_named(chat, tmp_path, source):
    tokenizer, template = chat(source)
    talks = [
        {"id": f"r{number}", "conversations": [{"from": "human", "value": text}, GPT]}
        for number, text in enumerate(("good?", "bad?", "fine?"))
    ]
    (tmp_path / "talk.json").write_text(json.dumps(talks))
    lines = [{"questions": [[text, "yes"]]} for text in ("good?", "bad?", "fine?")]
    (tmp_path / "asked.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for config, name in (
        (LlavaSource("llava", str(tmp_path / "talk.json"), str(tmp_path)), "talk.json/r1: "),
        (JsonlSource("jsonl", str(tmp_path / "asked.jsonl"), str(tmp_path)), "asked.jsonl:2: "),
    ):
        plan = make_plan(
            config.open(template),
            SegmentTokenizer(tokenizer, 1),
            RowCapacity(200, 1),
            name="talks",
            seed=None,
            skip_budget=0.5,
        )
        assert plan.report.seen == 3 and plan.report.skipped == 1
        ((cause, detail),) = plan.report.examples.items()
        assert "chat template" in cause and detail.startswith(name)


GPT = {"from": "gpt", "value": "yes"}


@pytest.mark.parametrize(
    "source",
    [
        CHATML,
        CHATML.replace(
            "{{ m.content }}<|im_end|>\n",
            "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>\n{% endgeneration %}"
            "{% else %}{{ m.content }}<|im_end|>\n{% endif %}",
        ),
        INST,
        HEADED,
        "{% generation %}{% for m in messages %}{{ m.content }}</s>{% endfor %}{% endgeneration %}",
    ],
)
def test_a_turn_that_is_not_to_be_learned_has_no_loss(chat, source):
    _, template = chat(source)
    turns = said(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    whole = template.conversation(turns)
    first = template.conversation(
        [replace(turns[1], loss=False) if i == 1 else t for i, t in enumerate(turns)]
    )
    last = template.conversation(
        [replace(turns[3], loss=False) if i == 3 else t for i, t in enumerate(turns)]
    )
    bare = shown(whole).replace("[", "").replace("]", "")
    for one, silent, spoken in ((first, "b", "d"), (last, "d", "b")):
        assert shown(one).replace("[", "").replace("]", "") == bare
        with_loss = "".join(part.text for part in one if isinstance(part, Text) and part.loss)
        assert silent not in with_loss and spoken in with_loss
        ends = [part for part in one if isinstance(part, Special) and part.loss]
        every = [part for part in whole if isinstance(part, Special) and part.loss]
        assert 0 < len(ends) < len(every)


def test_turns_that_end_in_another_token_are_refused(chat):
    source = "{% for m in messages %}{{ m.content }}{{ '</s>' if loop.index < 3 else '<|im_end|>' }}{% endfor %}"
    with pytest.raises(
        SampleError, match="does not end everything that the assistant says with </s>"
    ):
        chat(source)[1].conversation(
            said(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
        )


def test_the_longest_name_of_a_special_token_counts(chat):
    _, template = chat(CHATML.replace("<|im_start|>", "<s><|im_start|>"))
    assert shown(template.question("a", "b")).startswith("<<s><|im_start|>>user")


def test_a_text_that_the_template_looks_into_is_an_unusable_sample(chat):
    _, template = chat(CHATML.replace("{{ m.content }}", "{{ m.content.split('</think>')[-1] }}"))
    assert "[red]" in shown(template.question("what?", "red"))
    with pytest.raises(SampleError, match="rewritten by the chat template"):
        template.question("what?", "<think>hm</think>red")


def test_swallowed_white_space(folder, tmp_path):
    """Some special tokens take along what stands beside them."""
    content = json.loads((folder / "tokenizer.json").read_text())
    for token in content["added_tokens"]:
        token["rstrip"] = token["content"] == "<|im_end|>"
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": "</s>", "chat_template": CHATML})
    )
    template = find_template("chat", open_tokenizer(tmp_path))
    assert (
        shown(template.question("a", "b"))
        == "<<|im_start|>>user\na<<|im_end|>><<|im_start|>>assistant\n[b][<<|im_end|>>]"
    )


def test_a_template_goes_to_other_processes(chat):
    _, template = chat(CHATML)
    assert pickle.loads(pickle.dumps(template)).question("a", "b") == template.question("a", "b")


def test_sources_write_with_it(chat, tmp_path):
    tokenizer, _ = chat(CHATML)
    turns = [
        {"from": "human", "value": "<image>\nwhat?"},
        {"from": "gpt", "value": "red"},
        {"from": "human", "value": "sure?"},
    ]
    record = {"image": "a.png", "conversations": [*turns, {"from": "gpt", "value": "yes"}]}
    (tmp_path / "talk.json").write_text(json.dumps([record]))
    config = LlavaSource("llava", str(tmp_path / "talk.json"), str(tmp_path))
    source = config.open(find_template("chat", tokenizer))
    assert shown(source[0].continuations[0]) == (
        "<<|im_start|>>user\n(image)\nwhat?<<|im_end|>>\n<<|im_start|>>assistant\n[red][<<|im_end|>>]\n"
        "<<|im_start|>>user\nsure?<<|im_end|>>\n<<|im_start|>>assistant\n[yes][<<|im_end|>>]\n"
    )
    assert pickle.loads(pickle.dumps(source))[0].continuations[0][0] == Special("<|im_start|>")


def test_only_published_tokenizers_have_one(folder):
    with pytest.raises(InputError, match="tokenizer of words has none"):
        find_template("chat", WordTokenizer(["a"]))
    with pytest.raises(InputError, match="published tokenizer"):
        find_template("chat")
    (folder / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    with pytest.raises(InputError, match="comes with no chat template"):
        find_template("chat", open_tokenizer(folder))


def test_the_date_is_the_same_every_day():
    renderer = Renderer("{{ strftime_now('%Y-%m-%d') }}", {}, where="here")
    assert renderer.render([]) == "2024-07-26"


def test_json_is_not_escaped_for_html():
    renderer = Renderer("{{ messages | tojson(indent=1) }}", {}, where="here")
    assert renderer.render([{"role": "é<&>"}]) == '[\n {\n  "role": "é<&>"\n }\n]'
