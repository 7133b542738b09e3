"""Parameters from files: the same on every mesh bit for bit, read once, and with little memory (in processes of their own)."""

import functools
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding
from safetensors.numpy import load_file, save_file

from mmjax.distributed.mesh import make_mesh, parameter_shardings
from mmjax.errors import InputError
from mmjax.models import parameters
from mmjax.recipe.recipe import MeshConfig
from mmjax.weights import placing, targets
from mmjax.weights.load import load_pretrained, open_pretrained
from mmjax.weights.pretrained_protocol import stored
from mmjax.weights.save import save_params
from tests.weights.models import CONFIGS, params_of, saved, write_llama

ROOT = pathlib.Path(__file__).parents[2]
MESHES = {
    "data": MeshConfig(),
    "fsdp_tensor": MeshConfig(data=1, fsdp=4, tensor=2),
    "tensor": MeshConfig(data=1, fsdp=2, tensor=4),
    "all": MeshConfig(data=2, fsdp=2, tensor=2),
}
MODELS = ("llama", "mixtral", "siglip")
MEGABYTE = 1024 * 1024
BESIDE = 300 * MEGABYTE


class Counting:
    """A source that writes down what is read."""

    def __init__(self, source):
        self._source, self.read_parts = source, []

    def __getattr__(self, name):
        return getattr(self._source, name)

    def read(self, name, index=None):
        value = self._source.read(name, index)
        self.read_parts.append(
            (name, tuple((part.start, part.stop) for part in index or ()), value.nbytes)
        )
        return value


def counted(folder, shardings=None, dtype=np.float32):
    """The parameters of a folder; what was read for them; the bytes of its tensors."""
    with open_pretrained(folder) as opened:
        for group in opened.groups:
            group.source = Counting(group.source)
        params = opened.read(stored(opened.config, opened.shapes, dtype), shardings, dtype=dtype)
        return (
            params,
            [read for group in opened.groups for read in group.source.read_parts],
            opened.nbytes,
        )


@pytest.mark.parametrize("name", [*MODELS, "vlm"])
@pytest.mark.parametrize("kind", [targets.HostTarget, targets.DeviceTarget])
def test_what_was_saved_is_read_once(name, kind, tmp_path, monkeypatch):
    monkeypatch.setattr(placing, "make_target", kind)
    params, read, nbytes = counted(saved(name, tmp_path / "saved"))
    for path, value in params_of(CONFIGS[name]).items():
        np.testing.assert_array_equal(params[path], value, err_msg=path)
    assert sum(size for *_, size in read) == nbytes


@pytest.mark.parametrize("kind", [targets.HostTarget, targets.DeviceTarget])
def test_long_tensors_are_read_in_pieces(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(placing, "make_target", kind)
    monkeypatch.setattr(kind, "chunk", 500)
    params, read, nbytes = counted(saved("llama", tmp_path / "saved"))
    for path, value in params_of(CONFIGS["llama"]).items():
        np.testing.assert_array_equal(params[path], value, err_msg=path)
    assert sum(size for *_, size in read) == nbytes and max(size for *_, size in read) <= 512


def test_the_first_layers_of_a_stack(tmp_path):
    with open_pretrained(saved("llama", tmp_path / "saved")) as opened:
        path = "decoder/layers/mlp/up/kernel"
        found = opened.read({path: jax.ShapeDtypeStruct((2, 32, 64), np.float32)})
    np.testing.assert_array_equal(found[path], params_of(CONFIGS["llama"])[path][:2])


def test_bytes_are_told_as_they_come(tmp_path):
    told = []
    folder = saved("llama", tmp_path / "saved")
    load_pretrained(folder, progress=told.append)
    with open_pretrained(folder) as opened:
        assert sum(told) == opened.nbytes and len(told) > 10


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_number_that_is_not_finite_is_refused_by_name(value, dtype, tmp_path):
    save_params(params_of(CONFIGS["llama"]), CONFIGS["llama"], tmp_path / "saved", dtype=dtype)
    tensors = load_file(tmp_path / "saved" / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][2, 3] = value
    save_file(tensors, tmp_path / "saved" / "model.safetensors")
    with pytest.raises(
        InputError, match=r"model\.layers\.1\.mlp\.up_proj\.weight' has numbers that are not finite"
    ):
        load_pretrained(tmp_path / "saved")


def test_a_file_that_shrinks_meanwhile_is_reported(tmp_path):
    folder = saved("llama", tmp_path / "saved")
    with open_pretrained(folder) as opened:
        file = folder / "model.safetensors"
        with file.open("r+b") as stream:
            stream.truncate(file.stat().st_size - 10)
        with pytest.raises(InputError, match="Has it changed since it was opened"):
            opened.read()


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """What a process with eight devices says of every model and mesh, by the kind of target."""
    root = tmp_path_factory.mktemp("models")
    for name in MODELS:
        saved(name, root / name)
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}

    @functools.cache
    def run(kind):
        done = subprocess.run(
            [sys.executable, __file__, "sharded", str(root), kind],
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


@pytest.mark.parametrize(
    "kind", ["HostTarget", pytest.param("DeviceTarget", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("name", MODELS)
def test_sharded_is_unsharded_bit_for_bit_and_read_once(name, mesh, kind, sharded):
    found = sharded(kind)[f"{name} {mesh}"]
    assert not found["different"] and not found["elsewhere"]
    assert found["read"] == found["nbytes"], "bytes are read twice, or not at all"


def test_a_device_reads_its_part_only(sharded):
    """With one device of eight, an eighth of what is split, for these matrices."""
    assert sharded("HostTarget")["one device of eight"] == {
        "up": 1 / 8,
        "embedding": 1 / 8,
        "norm": 1,
    }


def sharded_worker(root, kind):
    results = {}
    for name in MODELS:
        whole, _, _ = counted(root / name)
        for mesh_name, config in MESHES.items():
            mesh = make_mesh(config)
            shapes, axes = (
                parameters.abstract(CONFIGS[name])[1],
                parameters.logical_axes(CONFIGS[name]),
            )
            shardings = parameter_shardings(shapes, axes, mesh)[0]
            placing.make_target = getattr(targets, kind)
            params, read, nbytes = counted(root / name, shardings)
            results[f"{name} {mesh_name}"] = {
                "different": [
                    path
                    for path in whole
                    if np.asarray(params[path]).tobytes() != np.asarray(whole[path]).tobytes()
                ],
                "elsewhere": [path for path in whole if params[path].sharding != shardings[path]],
                "read": sum(size for *_, size in read),
                "nbytes": nbytes,
            }
    print(json.dumps(results | {"one device of eight": one_device(root)}))


def one_device(root):
    """The share of a parameter's bytes that is read for the first device alone, as each of eight hosts would."""
    mesh = make_mesh(MESHES["fsdp_tensor"])
    shapes, axes = (
        parameters.abstract(CONFIGS["llama"])[1],
        parameters.logical_axes(CONFIGS["llama"]),
    )
    shardings = parameter_shardings(shapes, axes, mesh)[0]

    class FirstOnly(targets.HostTarget):
        def __init__(self, shape, sharding):
            super().__init__(shape, sharding)
            first = next(
                region for region, devices in self._held.items() if mesh.devices.flat[0] in devices
            )
            self.regions, self._buffers = (first,), self._buffers[:1]

        def array(self):
            return self._buffers[0]

    placing.make_target = FirstOnly
    shares = {}
    for name, path in (
        ("up", "layers/mlp/up/kernel"),
        ("embedding", "embedding"),
        ("norm", "norm/scale"),
    ):
        with open_pretrained(root / "llama") as opened:
            opened.groups[0].source = Counting(opened.groups[0].source)
            wanted = {f"decoder/{path}": opened.shapes[f"decoder/{path}"]}
            opened.read(wanted, shardings)
            read = sum(size for *_, size in opened.groups[0].source.read_parts)
        shares[name] = read / (4 * int(np.prod(wanted[f"decoder/{path}"].shape)))
    return shares


def memory_worker(folder, dtype, kind):
    if kind:
        placing.make_target = getattr(targets, kind)
    jax.block_until_ready(jax.numpy.zeros(1))
    with open_pretrained(folder) as opened:  # what is made once: traces, thread pools
        path = "decoder/norm/scale"
        opened.read({path: opened.shapes[path]})
        opened.mappings  # noqa: B018
    before = high_water()
    params = parameters.split(load_pretrained(folder, dtype=dtype))[1]
    jax.block_until_ready(params)
    print(
        json.dumps(
            {
                "grown": high_water() - before,
                "result": sum(value.nbytes for value in params.values()),
            }
        )
    )


def high_water():
    """Bytes that this process ever held, since it was last reset."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def measured(folder, dtype, kind=""):
    command = [sys.executable, __file__, "memory", str(folder), dtype, kind]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_of_a_small_load(tmp_path):
    """200 MB, of which the table of embeddings is 80: beyond the result, no stack, and not even the table."""
    largest = write_llama(tmp_path, width=512, mlp=1024, layers=4, vocabulary=40_000)
    found = measured(tmp_path, "bfloat16")
    assert found["grown"] - found["result"] <= 1.2 * largest + 60 * MEGABYTE, found


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("dtype", "kind"), [("float32", ""), ("bfloat16", ""), ("bfloat16", "DeviceTarget")]
)
def test_memory_of_a_large_load(dtype, kind, tmp_path_factory):
    """2 GB: a long table of embeddings, and stacks of layers of up to 350 MB."""
    folder = tmp_path_factory.getbasetemp() / "large"
    if not (folder / "config.json").exists():
        write_llama(folder, width=1024, mlp=4096, layers=24, vocabulary=80_000)
    largest = 80_000 * 1024 * 4
    found = measured(folder, dtype, kind)
    assert found["grown"] - found["result"] <= 1.2 * largest + BESIDE, found


def test_without_a_mesh_everything_is_on_the_first_device(tmp_path):
    params, _, _ = counted(saved("siglip", tmp_path / "saved"))
    assert all(
        value.sharding == SingleDeviceSharding(jax.devices()[0]) for value in params.values()
    )


if __name__ == "__main__":
    if sys.argv[1] == "sharded":
        sharded_worker(pathlib.Path(sys.argv[2]), sys.argv[3])
    else:
        memory_worker(pathlib.Path(sys.argv[2]), *sys.argv[3:])
