"""The Chain-of-Sight model and its training step as a PyTorch user writes them: the opponent of `step_time.py`.

Runs in its own interpreter (the one that has torch) and imports nothing of mmjax. It is given a folder with `spec.json` (the model's
config and the optimizer's) and `data.npz` (initial parameters by mmjax's paths, and packed batches), so that both sides start from the
same numbers and their losses can be compared. Protocol: prints "ready", then answers each line "N" on standard input with N
seconds-per-step and the last loss, as JSON.
"""

import ctypes
import json
import pathlib
import statistics
import sys
import time

ALLOCATOR = ((-8, 1), (-3, 2**31 - 1), (-1, -1), (-4, 0))  # the settings of mmjax/host.py: one arena, freed memory is kept


def keep_freed_memory() -> None:
    for option, value in ALLOCATOR:
        ctypes.CDLL(None).mallopt(option, value)


keep_freed_memory()
import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "silu": F.silu,
}


def norm(kind: str, width: int, epsilon: float) -> nn.Module:
    return nn.LayerNorm(width, eps=epsilon) if kind == "layer" else nn.RMSNorm(width, eps=epsilon)


class Attention(nn.Module):
    def __init__(self, width, heads, kv_heads, head_dim, bias, output_bias):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.query = nn.Linear(width, heads * head_dim, bias=bias)
        self.key = nn.Linear(width, kv_heads * head_dim, bias=bias)
        self.value = nn.Linear(width, kv_heads * head_dim, bias=bias)
        self.output = nn.Linear(heads * head_dim, width, bias=output_bias)

    def split(self, z):
        return z.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def forward(self, x, y, rotate=None, mask=None):
        q, k, v = self.split(self.query(x)), self.split(self.key(y)), self.split(self.value(y))
        if rotate is not None:
            q, k = rotate(q), rotate(k)
        o = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=self.heads != self.kv_heads)
        return self.output(o.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, width, hidden, activation, bias):
        super().__init__()
        self.up, self.down, self.activation = (
            nn.Linear(width, hidden, bias=bias),
            nn.Linear(hidden, width, bias=bias),
            ACTIVATIONS[activation],
        )

    def forward(self, x):
        return self.down(self.activation(self.up(x)))


class VisionBlock(nn.Module):
    def __init__(self, c):
        super().__init__()
        bias = c["norm"] == "layer"
        self.norm_attention, self.norm_mlp = (norm(c["norm"], c["width"], c["norm_epsilon"]) for _ in range(2))
        self.attention = Attention(c["width"], c["heads"], c["heads"], c["width"] // c["heads"], bias, bias)
        self.mlp = Mlp(c["width"], c["mlp_width"], c["activation"], bias)

    def forward(self, x):
        z = self.norm_attention(x)
        x = x + self.attention(z, z)
        return x + self.mlp(self.norm_mlp(x))


class Vision(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c, p = c, c["patch_size"]
        self.grid = c["image_size"] // p
        self.patch = nn.Linear(p * p * 3, c["width"], bias=c["patch_bias"])
        self.position = nn.Parameter(torch.zeros(self.grid**2 + c["class_token"], c["width"]))
        if c["class_token"]:
            self.class_token = nn.Parameter(torch.zeros(c["width"]))
        self.embedding_norm = norm(c["norm"], c["width"], c["norm_epsilon"]) if c["embedding_norm"] else nn.Identity()
        self.layers = nn.ModuleList(VisionBlock(c) for _ in range(c["layers"]))
        self.register_buffer("mean", torch.tensor(c["image_mean"]))
        self.register_buffer("std", torch.tensor(c["image_std"]))

    def forward(self, images, wanted):
        b, p, g = images.shape[0], self.c["patch_size"], self.grid
        x = (images.float() / 255 - self.mean) / self.std
        x = self.patch(x.reshape(b, g, p, g, p, 3).transpose(2, 3).reshape(b, g * g, p * p * 3))
        first = int(self.c["class_token"])
        if first:
            x = torch.cat([self.class_token.expand(b, 1, -1), x], 1)
        x = self.embedding_norm(x + self.position)
        features = {}
        for k, layer in enumerate(self.layers, 1):
            x = layer(x)
            features[k] = x[:, first:]
        return [features[k] for k in wanted]


class ResamplerLevel(nn.Module):
    def __init__(self, c):
        super().__init__()
        bias, d = c["norm"] == "layer", c["width"]
        self.norm_query, self.norm_features, self.norm_mlp = (norm(c["norm"], d, c["norm_epsilon"]) for _ in range(3))
        heads = d // c["head_dim"]
        inner = Attention(d, heads, heads, c["head_dim"], False, bias)
        self.query, self.key, self.value, self.output = inner.query, inner.key, inner.value, inner.output
        self.inner = [inner]  # in a list: its parameters are registered once, under the names above
        self.mlp = Mlp(d, c["mlp_width"], c["activation"], bias)

    def forward(self, q, x):
        q = q + self.inner[0](self.norm_query(q), self.norm_features(x))
        return q + self.mlp(self.norm_mlp(q))


class Scale(nn.Module):
    def __init__(self, c, window, queries):
        super().__init__()
        self.window, self.queries = window, nn.Parameter(torch.zeros(queries, c["width"]))
        self.levels = nn.ModuleList(ResamplerLevel(c) for _ in c["feature_layers"])

    def forward(self, features):
        b, p, d = features[0].shape
        w, g = self.window, int(p**0.5) // self.window
        q = self.queries.expand(b, -1, -1).reshape(b * g * g, -1, d)
        for level, x in zip(self.levels, features, strict=True):
            q = level(q, x.reshape(b, g, w, g, w, d).transpose(2, 3).reshape(b * g * g, w * w, d))
        return q.reshape(b, -1, d)


class Connector(nn.Module):
    def __init__(self, c, feature_width, width):
        super().__init__()
        self.kind = c["kind"]
        if self.kind == "resampler":
            self.scales = nn.ModuleList(Scale(c, w, n) for w, n in zip(c["windows"], c["queries"], strict=True))
            self.norm = norm(c["norm"], c["width"], c["norm_epsilon"])
        self.projection = nn.Linear(feature_width, width)

    def forward(self, features):
        if self.kind == "linear":
            return self.projection(features[-1])
        return self.projection(self.norm(torch.cat([scale(features) for scale in self.scales], 1)))


class SwiGlu(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.gate, self.up, self.down = (nn.Linear(a, b, bias=False) for a, b in ((width, hidden), (width, hidden), (hidden, width)))

    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))


class DecoderBlock(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.norm_attention, self.norm_mlp = (nn.RMSNorm(c["width"], eps=c["norm_epsilon"]) for _ in range(2))
        self.attention = Attention(c["width"], c["heads"], c["kv_heads"], c["head_dim"], False, False)
        self.mlp = SwiGlu(c["width"], c["mlp_width"])

    def forward(self, x, rotate, mask):
        z = self.norm_attention(x)
        x = x + self.attention(z, z, rotate, mask)
        return x + self.mlp(self.norm_mlp(x))


class Decoder(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c = c
        self.embedding = nn.Parameter(torch.zeros(c["vocabulary"], c["width"]))
        self.layers = nn.ModuleList(DecoderBlock(c) for _ in range(c["layers"]))
        self.norm = nn.RMSNorm(c["width"], eps=c["norm_epsilon"])
        if not c["tied_head"]:
            self.head = nn.Linear(c["width"], c["vocabulary"], bias=False)
        self.register_buffer("frequencies", c["rope_theta"] ** (-torch.arange(0, c["head_dim"], 2) / c["head_dim"]))

    def forward(self, x, positions, mask):
        angle = positions[..., None].float() * self.frequencies
        cos, sin = angle.cos()[:, None], angle.sin()[:, None]

        def rotate(z):
            a, b = z.chunk(2, -1)
            return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

        for layer in self.layers:
            x = layer(x, rotate, mask)
        return self.norm(x)

    def logits(self, x):
        return F.linear(x, self.embedding) if self.c["tied_head"] else self.head(x)


class Model(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.levels = c["connector"]["feature_layers"]
        self.vision = Vision(c["vision"])
        self.connector = Connector(c["connector"], c["vision"]["width"], c["decoder"]["width"])
        self.decoder = Decoder(c["decoder"])

    def forward(self, batch):
        """Sum of the targets' negative log-likelihoods over their count; the head runs on at most as many positions as a row has text."""
        images, tokens, targets, slot = batch["images"], batch["tokens"], batch["targets"], batch["image_slot"]
        rows, per_row = images.shape[:2]
        visual = self.connector(self.vision(images.flatten(0, 1), self.levels)).unflatten(0, (rows, per_row)).flatten(1, 2)
        placed = visual.gather(1, slot.clamp(min=0)[..., None].expand(-1, -1, visual.shape[-1]))
        x = torch.where((slot >= 0)[..., None], placed, self.decoder.embedding[tokens])
        segments, prefixes = batch["segments"], batch["prefixes"]
        order = torch.arange(tokens.shape[1])
        own = (segments[:, :, None] == segments[:, None]) & (order[:, None] >= order)
        mask = own | ((prefixes[:, :, None] == segments[:, None]) & (prefixes[:, :, None] > 0))
        hidden = self.decoder(x, batch["positions"], mask[:, None])
        text = tokens.shape[1] - visual.shape[1]
        chosen = (targets < 0).to(torch.int8).argsort(dim=1, stable=True)[:, :text]
        targets = targets.gather(1, chosen)
        logits = self.decoder.logits(hidden.gather(1, chosen[..., None].expand(-1, -1, hidden.shape[-1])))
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten().long(), ignore_index=-1, reduction="sum")
        return loss / (targets >= 0).sum()


def load(model: Model, parameters: dict[str, np.ndarray]) -> None:
    """Copies mmjax's parameters in: kernels are transposed, stacked layers are dealt out. Every parameter of both sides is used exactly
    once.
    """
    state, used = {}, set()
    for name, value in model.state_dict().items():
        if name.rsplit(".", 1)[-1] in ("mean", "std", "frequencies"):
            state[name] = value
            continue
        parts, index = name.split("."), None
        if parts[1] == "layers":
            index = int(parts.pop(2))
        path = "/".join(parts)
        if path not in parameters and parts[-1] == "weight":
            path = path.removesuffix("weight") + ("kernel" if value.ndim == 2 else "scale")
        array = parameters[path] if index is None else parameters[path][index]
        used.add(path)
        state[name] = torch.from_numpy(np.ascontiguousarray(array.T if path.endswith("/kernel") else array))
    assert used == set(parameters), sorted(set(parameters) ^ used)
    model.load_state_dict(state)


def make_step(model, spec):
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    o = spec["optimizer"]
    groups = [{"params": decayed, "weight_decay": o["weight_decay"]}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=o["learning_rate"], betas=(o["beta1"], o["beta2"]), eps=o["epsilon"], fused=True)
    forward = torch.compile(model) if spec["compile"] else model

    def step(batch):
        loss = forward(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), o["clip_norm"])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def main(folder: str) -> None:
    spec = json.loads((pathlib.Path(folder) / "spec.json").read_text())
    spec["compile"] = "compile" in sys.argv
    data = dict(np.load(pathlib.Path(folder) / "data.npz"))
    model = Model(spec["model"])
    load(model, {k.removeprefix("params:"): v for k, v in data.items() if k.startswith("params:")})
    fields = {k.removeprefix("batch:"): torch.from_numpy(v) for k, v in data.items() if k.startswith("batch:")}
    batches = [{k: (v[i].long() if v.dtype == torch.int32 else v[i]) for k, v in fields.items()} for i in range(len(fields["tokens"]))]
    step, count = make_step(model, spec), 0
    print("ready", flush=True)
    for line in sys.stdin:
        seconds, losses = [], []
        for _ in range(int(line)):
            start = time.perf_counter()
            losses.append(step(batches[count % len(batches)]))
            seconds.append(time.perf_counter() - start)
            count += 1
        print(json.dumps({"seconds": statistics.median(seconds), "losses": losses}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
