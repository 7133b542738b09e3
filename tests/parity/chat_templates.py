"""Chat templates in the manner of published ones, each with what makes it difficult. For record_chat_templates.py."""

# Bytes, with a system turn of its own where none is given.
CHATML = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}{{ '<|im_start|>system\nYou are brief.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# The beginning token by a variable; contents are trimmed; the date is asked for.
LLAMA3 = """\
{{- bos_token }}
{%- if messages[0].role == 'system' %}
    {%- set system = messages[0].content | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = '' %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' }}
{{- 'Today is ' + (strftime_now('%d %b %Y') if strftime_now is defined else 'a day') + '.\\n\\n' + system + '<|eot_id|>' }}
{%- for message in messages %}
    {%- if message.role not in ['user', 'assistant'] %}
        {%- continue %}
    {%- endif %}
    {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + message.content | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

# Roles must alternate, the system's words stand in the first question, and there is no generation prompt but [/INST] itself.
INST = """\
{%- if messages[0]['role'] == 'system' -%}
    {%- set rest = messages[1:] -%}
    {%- set words = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' -%}
{%- else -%}
    {%- set rest = messages -%}
    {%- set words = '' -%}
{%- endif -%}
{%- for message in rest -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception('user and assistant must take turns') }}
    {%- endif -%}
    {%- if message['role'] == 'user' -%}
        {{ bos_token + '[INST] ' + (words if loop.first else '') + message['content'].strip() + ' [/INST]' }}
    {%- else -%}
        {{ ' ' + message['content'].strip() + ' ' + eos_token }}
    {%- endif -%}
{%- endfor -%}
"""

# No special token but at the ends; knows no generation prompt.
VICUNA = """\
{{ bos_token }}
{%- for message in messages -%}
    {%- if message['role'] == 'system' -%}
        {{ message['content'] + ' ' }}
    {%- elif message['role'] == 'user' -%}
        {{ 'USER: ' + message['content'] + ' ' }}
    {%- else -%}
        {{ 'ASSISTANT: ' + message['content'] + eos_token }}
    {%- endif -%}
{%- endfor -%}
"""

# The same with a generation prompt.
VICUNA_PROMPTING = VICUNA.rstrip() + "{%- if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"

# In the manner of Qwen 3: an empty thought before the last answer, whose tags are added tokens but not special; loops backwards; tools.
THINKING = """\
{%- if tools %}{{ tools | tojson }}{% endif %}
{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last=-1) %}
{%- for message in messages[::-1] %}
    {%- set index = messages|length - 1 - loop.index0 %}
    {%- if ns.last < 0 and message.role == 'user' and not message.content.startswith('<tool_response>') %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {%- set content = message.content.split('</think>')[-1].lstrip('\\n') %}
        {%- set thought = '<think>\\n\\n</think>\\n\\n' if loop.index0 > ns.last else '' %}
        {{- '<|im_start|>assistant\\n' + thought + content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}
"""

# Says itself what the assistant generates.
GENERATION = """\
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}{% generation %}{{ message.content }}<|im_end|>{% endgeneration %}{{ '\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}
"""

# The same for a tokenizer that keeps a space with its word.
GENERATION_INST = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {{- ' ' }}{% generation %}{{- message.content + eos_token }}{% endgeneration %}
    {%- else %}
        {{- '[INST] ' + message.content + ' [/INST]' }}
    {%- endif %}
{%- endfor %}
"""

# Contents as parts, as templates for images want them.
PARTS = """\
{%- for message in messages %}
    {{- message.role | upper + ': ' }}
    {%- for part in message.content | selectattr('type', 'equalto', 'text') %}{{ part.text }}{% endfor %}
    {{- eos_token if message.role == 'assistant' else ' ' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}
"""

# Lines and indentation that only the settings of the environment take away.
BLOCKS = """\
{% for message in messages %}
    {% if message.role == 'assistant' %}
 {{ message.content }}{{ eos_token }}
    {% else %}
 {{ bos_token }} {{ message.role }} {{ message.content }}:
    {% endif %}
{% endfor %}
"""

BYTES, METASPACE, LEGACY, ALWAYS = "bytes", "metaspace", "legacy", "always"

# (template, tokenizer, tokens of roles, whether a system turn may come first)
STYLES = {
    "chatml": (CHATML, BYTES, {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}, True),
    "llama3": (LLAMA3, BYTES, {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}, True),
    "thinking": (THINKING, BYTES, {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}, True),
    "generation": (GENERATION, BYTES, {"eos_token": "<|im_end|>"}, True),
    "inst": (INST, METASPACE, {"bos_token": "<s>", "eos_token": "</s>"}, True),
    "inst_legacy": (INST, LEGACY, {"bos_token": "<s>", "eos_token": "</s>"}, True),
    "generation_inst": (
        GENERATION_INST,
        METASPACE,
        {"bos_token": "<s>", "eos_token": "</s>"},
        False,
    ),
    "vicuna": (VICUNA, LEGACY, {"bos_token": "<s>", "eos_token": "</s>"}, True),
    "vicuna_prompting": (
        VICUNA_PROMPTING,
        METASPACE,
        {"bos_token": "<s>", "eos_token": "</s>"},
        True,
    ),
    "blocks": (BLOCKS, METASPACE, {"bos_token": "<s>", "eos_token": "</s>"}, True),
    "blocks_always": (BLOCKS, ALWAYS, {"bos_token": "<s>", "eos_token": "</s>"}, False),
    "blocks_legacy": (BLOCKS, LEGACY, {"bos_token": "<s>", "eos_token": "</s>"}, False),
    "inst_always": (INST, ALWAYS, {"bos_token": "<s>", "eos_token": "</s>"}, False),
    "parts": (PARTS, METASPACE, {"bos_token": "<s>", "eos_token": "</s>"}, True),
}

# In the manner of LLaVA-1.5: contents as parts, images first, nothing for the system, and no special token but that of images.
LLAVA = """\
{%- for message in messages %}
    {{- message.role | upper + ': ' }}
    {%- for part in message.content | selectattr('type', 'equalto', 'image') %}{{ '<image>\\n' }}{% endfor %}
    {%- for part in message.content | selectattr('type', 'equalto', 'text') %}{{ part.text + ' ' }}{% endfor %}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}
"""

# Contents as texts or as parts, images where they stand between texts.
INLINE = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.content is string %}
        {{- message.content }}
    {%- else %}
        {%- for part in message.content %}
            {{- '<|im_start|><|image_pad|>' if part.type == 'image' else part.text }}
        {%- endfor %}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}
"""

# (template, tokenizer, tokens of roles, token of images)
SEEING = {
    "llava": (LLAVA, METASPACE, {"bos_token": "<s>", "eos_token": "</s>"}, "<image>"),
    "llava_legacy": (LLAVA, LEGACY, {"bos_token": "<s>", "eos_token": "</s>"}, "<image>"),
    "inline": (INLINE, BYTES, {"eos_token": "<|im_end|>"}, "<|image_pad|>"),
}
VISUAL_TOKENS = 4

SYSTEM = ("system", "Answer in one word.")
CONVERSATIONS = (
    (("user", "What is there?"),),
    (("user", "What is there?"), ("assistant", "A red circle.")),
    (("user", "  spaces around \n"), ("assistant", "1024 x 768, naïve café  ")),
    (
        ("user", "Grüße\n\nund mehr"),
        ("assistant", "这是一张照片。"),
        ("user", "sure?"),
        ("assistant", "yes\nand no\n\nreally"),
    ),
    (("user", "a"), ("assistant", "b"), ("user", "c")),
)

# None stands for an image.
IMAGE_CONVERSATIONS = (
    (("user", (None, "What is there?")),),
    (("user", (None, "What is there?")), ("assistant", ("A red circle.",)), ("user", ("sure?",))),
    (
        ("user", ("What is there?",)),
        ("assistant", ("b",)),
        ("user", (None, None, "Grüße\n\nund mehr")),
        ("assistant", ("yes and no",)),
    ),
    (("user", (None, " the first ", None, "and the second")),),
    (("user", ("no image",)),),
)
