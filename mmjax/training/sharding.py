"""The mesh of devices, and the layout of parameters, state and batches on it (`mmjax.mesh_axes` has the table of axes).

`data` splits rows only. `fsdp` splits rows and also the parameters and moments, which are gathered where they are used. `tensor` splits
heads, MLP hidden units and the vocabulary. Axis types are Auto: the compiler inserts the communication. Run the step under
`jax.set_mesh(mesh)`.
"""

import math
from collections.abc import Mapping, Sequence

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mmjax.errors import InputError
from mmjax.mesh_axes import MESH_AXES, ROW_AXES
from mmjax.models.config import ResamplerConfig, VLMConfig
from mmjax.recipe import MeshConfig, Stage
from mmjax.training.state import TrainState
from mmjax.typing import Batch


def check_axes(config: MeshConfig) -> dict[str, int]:
    """The sizes as they stand, -1 for one that is not known yet; needs no device. Raises InputError if no number of devices would do."""
    sizes = {axis: getattr(config, axis) for axis in MESH_AXES}
    for axis in ("expert", "context"):
        if sizes[axis] != 1:
            raise InputError(f"mesh.{axis} is {sizes[axis]}, but no part of the model is split over {axis!r}; set it to 1.")
    unknown = [axis for axis in MESH_AXES if sizes[axis] == -1]
    if len(unknown) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
        raise InputError(f"mesh: sizes are positive, and one of them at most is -1 (whatever is left); they are {sizes}.")
    return sizes


def axis_sizes(config: MeshConfig, devices: int) -> dict[str, int]:
    """Devices along each mesh axis.

    Raises:
        InputError: the sizes do not multiply to the number of devices, or name an axis over which nothing of this model is split.
    """
    sizes = check_axes(config)
    unknown = [axis for axis in MESH_AXES if sizes[axis] == -1]
    known = math.prod(size for size in sizes.values() if size != -1)
    if devices % known or (not unknown and known != devices):
        raise InputError(f"mesh: {sizes} needs {'a multiple of ' if unknown else ''}{known} devices, and there are {devices}.")
    return sizes | dict.fromkeys(unknown, devices // known)


def make_mesh(config: MeshConfig | None = None, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh over all devices, or the given ones; neighbours in the machine are neighbours on the inner axes.

    Raises:
        InputError: as `axis_sizes`; or there are several processes, for each of which the loader would read the whole batch.
    """
    if jax.process_count() > 1:
        raise InputError(f"There are {jax.process_count()} processes; training runs in one, over all the devices that it sees.")
    devices = jax.devices() if devices is None else devices
    sizes = axis_sizes(config or MeshConfig(), len(devices))
    return jax.make_mesh(tuple(sizes.values()), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES), devices=devices)


def check(sizes: Mapping[str, int], stage: Stage) -> None:
    """Whether a stage can be laid out on a mesh of these `axis_sizes`; needs no device.

    Raises:
        InputError: a number of heads that `tensor` does not divide, or rows that `data` x `fsdp` do not.
    """
    for name, heads in head_counts(stage.model).items():
        if heads % sizes["tensor"]:
            raise InputError(
                f"stage {stage.name!r}: {name} is {heads}, which mesh.tensor = {sizes['tensor']} does not divide; a head is never cut."
            )
    ways = sizes["data"] * sizes["fsdp"]
    if stage.batch_size % (ways * stage.micro_batches):
        raise InputError(
            f"stage {stage.name!r}: batch_size {stage.batch_size} does not split into {stage.micro_batches} micro_batches over "
            f"data x fsdp = {ways} devices; it must be a multiple of {ways * stage.micro_batches}."
        )


def head_counts(model: VLMConfig) -> dict[str, int]:
    """Every number of attention heads of a model, by the config field it comes from."""
    heads = {"vision.heads": model.vision.heads, "decoder.heads": model.decoder.heads, "decoder.kv_heads": model.decoder.kv_heads}
    if isinstance(model.connector, ResamplerConfig):
        heads["connector.width / head_dim"] = model.connector.width // model.connector.head_dim
    return heads


def state_shardings(state: TrainState, parameters: Mapping[str, NamedSharding], mesh: Mesh) -> TrainState:
    """Shardings of a state, concrete or abstract: moments lie where their parameter does, counters everywhere."""
    everywhere = NamedSharding(mesh, PartitionSpec())

    def of(path: tuple[jax.tree_util.KeyEntry, ...], _: object) -> NamedSharding:
        last = path[-1]
        return parameters[last.key] if isinstance(last, jax.tree_util.DictKey) else everywhere

    return jax.tree_util.tree_map_with_path(of, state)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Of every array of a batch: rows over `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(ROW_AXES))


def place_batch(batch: Batch, mesh: Mesh) -> Batch:
    """Puts a batch of numpy arrays on the devices of the mesh; the process gives all rows."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda value: jax.make_array_from_process_local_data(sharding, value), batch)
