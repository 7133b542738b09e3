"""States on disk: what comes back is what was saved, or something older, and never anything else."""

import contextlib
import itertools
import json
import logging
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mmjax.errors import InputError
from mmjax.training import checkpoint
from mmjax.training.checkpoint import Checkpoints, Record, by_path, load_params
from mmjax.training.state import TrainState

METADATA = {"seconds": {"step": 0.1 + 0.2}, "window": [1.5, 3], "evaluated_at": None}


def make_state(seed: int, width: int = 4) -> TrainState:
    """Every dtype and shape that a state has: float32, bfloat16, int32 and uint32; matrices, vectors and scalars."""
    random = np.random.default_rng(seed)
    trainable = {
        "connector/projection/kernel": jnp.asarray(random.normal(size=(3, width)), jnp.float32),
        "decoder/norm/scale": jnp.asarray(random.normal(size=width), jnp.float32),
    }
    frozen = {
        "decoder/layers/mlp/up/kernel": jnp.asarray(random.normal(size=(2, width, 5)), jnp.bfloat16)
    }
    zeros, ones = ({path: factor * value for path, value in trainable.items()} for factor in (0, 1))
    return TrainState(
        trainable,
        frozen,
        optax.ScaleByAdamState(jnp.int32(seed), zeros, ones),
        jnp.int32(seed),
        jax.random.key_data(jax.random.key(seed)),
    )


def abstract(state: TrainState) -> TrainState:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def assert_same(one: TrainState, other: TrainState) -> None:
    left, right = by_path(one), by_path(other)
    assert left.keys() == right.keys()
    for path in left:
        assert isinstance(left[path], jax.Array) and left[path].dtype == right[path].dtype, path
        assert np.asarray(left[path]).tobytes() == np.asarray(right[path]).tobytes(), path


def save(folder: pathlib.Path, *steps: int, **options) -> None:
    with Checkpoints(folder, **{"keep_last": 9, **options}) as kept:
        for step in steps:
            assert kept.save(step, make_state(step), 10 * step, METADATA)


def published(folder: pathlib.Path) -> list[int]:
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())


def test_a_state_comes_back_bit_for_bit(tmp_path):
    save(tmp_path, 3, 7)
    with Checkpoints(tmp_path) as kept:
        assert kept.steps == [3, 7]
        found = kept.restore_latest(abstract(make_state(0)))
    assert (found.step, found.row, found.metadata) == (7, 70, METADATA)
    assert_same(found.state, make_state(7))


def test_nothing_is_restored_from_nothing(tmp_path):
    with Checkpoints(tmp_path / "new") as kept:
        assert kept.restore_latest(abstract(make_state(0))) is None


def test_the_last_and_the_best_are_kept(tmp_path):
    losses = {1: 3.0, 2: 1.0, 3: None, 4: float("nan"), 5: 2.0, 6: None, 7: 1.5}
    with Checkpoints(tmp_path, keep_last=2, keep_best=True) as kept:
        for step, loss in losses.items():
            kept.save(step, make_state(step), 0, {}, loss)
    assert published(tmp_path) == [2, 6, 7]
    with Checkpoints(
        tmp_path, keep_last=2, keep_best=True
    ) as kept:  # which one is best is known after a restart, too
        kept.save(8, make_state(8), 0, {}, 9.0)
    assert published(tmp_path) == [2, 7, 8]


def test_without_keep_best_only_the_last_stay(tmp_path):
    with Checkpoints(tmp_path, keep_last=1, keep_best=False) as kept:
        for step in (1, 2, 3):
            kept.save(step, make_state(step), 0, {}, float(step))
    assert published(tmp_path) == [3]


def test_a_published_step_is_never_written_again(tmp_path):
    save(tmp_path, 3)
    with Checkpoints(tmp_path) as kept:
        assert not kept.save(3, make_state(99), 99, {})
        assert_same(kept.restore_latest(abstract(make_state(0))).state, make_state(3))


def test_arrays_may_be_given_away_while_they_are_being_saved(tmp_path):
    advance = jax.jit(
        lambda state: jax.tree.map(lambda x: x + x.dtype.type(1), state), donate_argnums=0
    )
    state = advance(make_state(1, width=100_000))
    expected = jax.tree.map(lambda x: np.array(x, copy=True), state)
    with Checkpoints(tmp_path) as kept:
        kept.save(1, state, 0, {})
        for _ in range(20):
            state = advance(state)
        jax.block_until_ready(state)
    with Checkpoints(tmp_path) as kept:
        found = kept.restore_latest(abstract(make_state(0, width=100_000)))
    assert_same(found.state, jax.tree.map(jnp.asarray, expected))


def test_what_a_killed_save_left_behind_does_no_harm(tmp_path):
    save(tmp_path, 3)
    left = [tmp_path / f"{step}.orbax-checkpoint-tmp" for step in (4, 5)]
    for half in left:
        shutil.copytree(tmp_path / "3", half)
        (half / "record" / "record.json").unlink()
    with Checkpoints(tmp_path) as kept:
        assert kept.restore_latest(abstract(make_state(0))).step == 3
        kept.save(5, make_state(5), 50, METADATA)
    assert published(tmp_path) == [3, 5] and not any(half.exists() for half in left)
    with Checkpoints(tmp_path) as kept:
        assert_same(kept.restore_latest(abstract(make_state(0))).state, make_state(5))


# Damage


def flip(path: pathlib.Path) -> None:
    content = bytearray(path.read_bytes())
    if content:
        content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: pathlib.Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


DAMAGES = {"flip": flip, "truncate": truncate, "delete": pathlib.Path.unlink}


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # the storage library's own, when a read fails
@pytest.mark.parametrize(
    "pattern",
    [
        "7/state/d/*",
        "7/record/record.json",
        pytest.param("7/**/*", marks=pytest.mark.slow, id="any file"),
    ],
)
@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_gives_the_same_state_or_the_one_before(tmp_path, damage, pattern):
    save(tmp_path / "good", 3, 7)
    files = [
        path.relative_to(tmp_path / "good")
        for path in sorted((tmp_path / "good").glob(pattern))
        if path.is_file()
    ]
    fell_back = []
    for number, file in enumerate(files):
        folder = tmp_path / str(number)
        shutil.copytree(tmp_path / "good", folder)
        DAMAGES[damage](folder / file)
        with Checkpoints(folder) as kept:
            found = kept.restore_latest(abstract(make_state(0)))
        assert_same(found.state, make_state(found.step))
        assert (found.row, found.metadata) == (10 * found.step, METADATA)
        assert found.step in (3, 7)
        if found.step == 3:
            fell_back.append(file.as_posix())
            assert (folder / "7.damaged").is_dir() and published(folder) == [3]
    # The arrays' bytes and the record are files that nothing can stand for.
    needed = [
        file.as_posix()
        for file in files
        if file.match("7/state/d/*") or file.match("7/record/record.json")
    ]
    assert needed and set(needed) <= set(fell_back), fell_back


def test_every_byte_of_the_record_is_covered(tmp_path):
    save(tmp_path, 3, 7)
    path = tmp_path / "7" / "record" / "record.json"
    original = path.read_bytes()
    assert b'"row": 70' in original
    path.write_bytes(original.replace(b'"row": 70', b'"row": 71'))
    with Checkpoints(tmp_path) as kept:
        assert kept.restore_latest(abstract(make_state(0))).step == 3


def test_a_changed_element_is_noticed_though_the_files_are_well_formed(tmp_path):
    """The arrays of another state under the record of this one: no checksum of the storage format can tell."""
    save(tmp_path / "a", 3, 7)
    save(tmp_path / "b", 8)
    shutil.rmtree(tmp_path / "a" / "7" / "state")
    shutil.copytree(tmp_path / "b" / "8" / "state", tmp_path / "a" / "7" / "state")
    with Checkpoints(tmp_path / "a") as kept:
        assert kept.restore_latest(abstract(make_state(0))).step == 3


def test_damage_is_reported_and_the_step_can_come_again(tmp_path, caplog):
    save(tmp_path, 3, 7)
    (tmp_path / "7" / "record" / "record.json").write_text("{}")
    with caplog.at_level(logging.ERROR, logger="absl"), Checkpoints(tmp_path) as kept:
        found = kept.restore_latest(abstract(make_state(0)))
        assert kept.save(7, make_state(77), 0, {})
    assert found.step == 3
    messages = " ".join(record.getMessage() for record in caplog.records)
    assert "7 is damaged" in messages and "Going on from the checkpoint" in messages
    with Checkpoints(tmp_path) as kept:
        assert_same(kept.restore_latest(abstract(make_state(0))).state, make_state(77))


def test_if_none_can_be_read_nothing_is_touched_and_nothing_begins_anew(tmp_path):
    save(tmp_path, 3, 7)
    for step in (3, 7):
        flip(tmp_path / str(step) / "record" / "record.json")
    with (
        Checkpoints(tmp_path) as kept,
        pytest.raises(InputError, match="None of the 2 checkpoints"),
    ):
        kept.restore_latest(abstract(make_state(0)))
    assert published(tmp_path) == [3, 7]


@pytest.mark.parametrize("error", [MemoryError(), jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED")])
def test_running_out_of_memory_is_no_damage(tmp_path, monkeypatch, error):
    save(tmp_path, 3, 7)

    def fail(*_):
        raise error

    monkeypatch.setattr(checkpoint.ocp, "load_checkpointables", fail)
    with Checkpoints(tmp_path) as kept, pytest.raises(type(error)):
        kept.restore_latest(abstract(make_state(0)))
    assert published(tmp_path) == [3, 7]


# Scores


def change(path: pathlib.Path, old: bytes, new: bytes) -> None:
    content = path.read_bytes()
    assert content.count(old) == 1
    path.write_bytes(content.replace(old, new))


def test_the_score_is_part_of_the_record_and_of_nothing_else(tmp_path):
    with Checkpoints(tmp_path) as kept:
        kept.save(3, make_state(3), 30, METADATA, 0.5)
    assert Record.of(tmp_path / "3").score == 0.5
    assert {path.name for path in (tmp_path / "3").iterdir() if path.is_dir()} == {
        "record",
        "state",
    }


def test_a_changed_score_makes_no_checkpoint_the_best(tmp_path):
    """Nor is one removed that cannot be judged: it may be the best."""
    with Checkpoints(tmp_path, keep_last=1) as kept:
        for step, loss in {1: 1.0, 2: 2.0}.items():
            kept.save(step, make_state(step), 0, {}, loss)
        change(tmp_path / "1" / "record" / "record.json", b'"score": 1.0', b'"score": 9.0')
        kept.save(3, make_state(3), 0, {}, 3.0)
    assert published(tmp_path) == [1, 2, 3]


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff", b"7", b'{"held_out_loss": "low"}'])
def test_a_file_of_metrics_that_an_older_version_wrote_is_not_read(tmp_path, content):
    save(tmp_path, 3, 7)
    folder = tmp_path / "7" / "metrics"
    folder.mkdir()
    (folder / "metrics").mkdir() if content is None else (folder / "metrics").write_bytes(content)
    with Checkpoints(tmp_path) as kept:
        assert kept.restore_latest(abstract(make_state(0))).step == 7
        assert kept.save(8, make_state(8), 0, {}, 1.0)


def test_records_of_an_older_version_have_no_score_and_are_read(tmp_path):
    save(tmp_path, 3)
    path = tmp_path / "3" / "record" / "record.json"
    content = json.loads(path.read_text())["content"]
    del content["score"]
    path.write_text(json.dumps({"content": content, "digest": checkpoint._digest_json(content)}))
    assert Record.of(tmp_path / "3").score is None
    with Checkpoints(tmp_path) as kept:
        assert kept.restore_latest(abstract(make_state(0))).step == 3


# What is left over, and what a disk does


def test_what_a_kill_between_a_save_and_its_tidying_left_is_collected_by_the_next_save(tmp_path):
    save(tmp_path, 1, 2, 3)
    (tmp_path / "9.deleted" / "state").mkdir(parents=True)
    with Checkpoints(tmp_path, keep_last=2, keep_best=False) as kept:
        assert kept.steps == [1, 2, 3] and not (tmp_path / "9.deleted").exists()
        kept.save(4, make_state(4), 0, {})
    assert published(tmp_path) == [3, 4] and len(list(tmp_path.iterdir())) == 2


@pytest.fixture
def no_room():
    """A context in which files of this process cannot grow."""

    @contextlib.contextmanager
    def limited():
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited


def test_a_save_that_the_disk_refuses_leaves_the_others_and_nothing_else(tmp_path, no_room, caplog):
    save(tmp_path, 3)
    with caplog.at_level(logging.ERROR), Checkpoints(tmp_path) as kept:
        with no_room():
            assert kept.save(4, make_state(4), 40, {})
            assert not kept.wait()
        assert "File too large" in kept.failure
        assert published(tmp_path) == [3] and len(list(tmp_path.iterdir())) == 1
        assert kept.save(4, make_state(4), 40, {}) and kept.wait() and kept.failure is None
    (message,) = {record.getMessage() for record in caplog.records}
    assert "4 was not saved: " in message and "\n" not in message
    assert not any(record.exc_info for record in caplog.records)
    with Checkpoints(tmp_path) as kept:
        assert_same(kept.restore_latest(abstract(make_state(0))).state, make_state(4))


@pytest.mark.parametrize("number", [28, 30])
def test_a_folder_that_cannot_be_made_fails_the_save_at_once(tmp_path, monkeypatch, number, caplog):
    """Even while the clock jumps back, so that the writer's own limits of time never come."""
    with Checkpoints(tmp_path) as kept:
        with monkeypatch.context() as patch:
            clock = itertools.count(2_000_000_000, -1_000)
            patch.setattr(time, "time", lambda: float(next(clock)))
            patch.setattr(os, "mkdir", refusing(os.mkdir, OSError(number, os.strerror(number))))
            begun = time.monotonic()
            kept.save(4, make_state(4), 40, {})
            assert not kept.wait() and time.monotonic() - begun < 10
        assert kept.failure == os.strerror(number)
        assert kept.save(4, make_state(4), 40, {}) and kept.wait()
    assert published(tmp_path) == [4]


def refusing(make, error):
    def making(path, *arguments, **options):
        if "orbax" in os.fspath(path):
            raise error
        make(path, *arguments, **options)

    return making


def test_a_folder_that_vanishes_is_not_made_again(tmp_path):
    with Checkpoints(tmp_path / "stage") as kept:
        shutil.rmtree(tmp_path / "stage")
        kept.save(4, make_state(4), 40, {})
        assert not kept.wait() and kept.failure == "No such file or directory"
    assert not list(tmp_path.iterdir())


# ModelDef


def test_another_structure_is_refused_with_a_list(tmp_path):
    save(tmp_path, 3)
    state = make_state(0)
    trainable = {
        "connector/projection/kernel": jnp.zeros((4, 3)),  # misshapen
        "decoder/norm/scale": state.trainable["decoder/norm/scale"].astype(
            jnp.bfloat16
        ),  # of another type
        "vision/patch/kernel": jnp.zeros((2, 2)),  # not in the checkpoint
    }
    other = TrainState(trainable, {}, state.optimizer, state.step, state.rng)
    with Checkpoints(tmp_path) as kept, pytest.raises(InputError) as caught:
        kept.restore_latest(abstract(other))
    message = str(caught.value)
    assert (
        "trainable/connector/projection/kernel: float32[3, 4] there, float32[4, 3] here" in message
    )
    assert "trainable/decoder/norm/scale: float32[4] there, bfloat16[4] here" in message
    assert "trainable/vision/patch/kernel: missing" in message
    assert "frozen/decoder/layers/mlp/up/kernel: not part of this model" in message
    assert published(tmp_path) == [3]


# Parameters alone


def test_parameters_are_read_without_the_optimizer(tmp_path):
    save(tmp_path, 3)
    params, metadata = load_params(tmp_path / "3")
    state = make_state(3)
    assert params.keys() == state.params.keys() and metadata == METADATA
    for path, value in state.params.items():
        assert params[path].dtype == value.dtype
        np.testing.assert_array_equal(params[path], value, err_msg=path)


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path):
    (tmp_path / "3").mkdir()
    with pytest.raises(InputError, match="cannot be used as a checkpoint"):
        load_params(tmp_path / "3")
    with pytest.raises(InputError, match="There is no checkpoint"):
        load_params(tmp_path / "4")


def test_damaged_parameters_are_refused(tmp_path):
    save(tmp_path, 3)
    record = tmp_path / "3" / "record" / "record.json"
    content = json.loads(record.read_text())
    content["content"]["arrays"]["frozen/decoder/layers/mlp/up/kernel"]["digest"] = "0" * 32
    record.write_text(json.dumps(content))
    with pytest.raises(InputError, match="not what was saved"):
        load_params(tmp_path / "3")


# Other devices

RESHARD = """
import pathlib, sys, jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from mmjax.training.checkpoint import Checkpoints
sys.path.insert(0, "tests/training")
import test_checkpoint as t
mesh = jax.make_mesh((4,), ("fsdp",))
def place(x):
    spec = PartitionSpec(*["fsdp" if size == 4 else None for size in x.shape])
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))
wanted = jax.tree.map(place, t.make_state(0))
with Checkpoints(pathlib.Path(sys.argv[1])) as kept:
    state = kept.restore_latest(wanted).state
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y), state, t.make_state(3))
    assert all(x.sharding == y.sharding for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(wanted), strict=True))
    path = "decoder/layers/mlp/up/kernel"
    kernel = wanted.frozen[path]
    params, _ = t.load_params(pathlib.Path(sys.argv[1]) / "3", {path: kernel.sharding})
    assert set(params) == {path} and params[path].sharding == kernel.sharding
    np.testing.assert_array_equal(params[path], t.make_state(3).frozen[path])
    kept.save(5, jax.tree.map(lambda x: x + x.dtype.type(1), state), 0, {})
"""


def test_a_state_is_restored_to_other_devices_and_back(tmp_path):
    save(tmp_path, 3)
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
    }
    subprocess.run(
        [sys.executable, "-c", RESHARD, str(tmp_path)],
        env=environment | {"PYTHONPATH": "."},
        check=True,
    )
    with Checkpoints(tmp_path) as kept:
        found = kept.restore_latest(abstract(make_state(0)))
    assert found.step == 5
    jax.tree.map(
        lambda x, y: np.testing.assert_array_equal(x, y + y.dtype.type(1)),
        found.state,
        make_state(3),
    )
