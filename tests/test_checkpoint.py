"""Checkpoints: what is restored is what was saved, a checkpoint is whole or not there, and a failure is one line."""

import json
import logging
import shutil
import subprocess
import sys
from contextlib import closing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from dcore_jax import UserError
from dcore_jax.checkpoint import Checkpoints, abstract

MESH = jax.make_mesh((8,), ("fsdp",))
SPLIT, WHOLE = NamedSharding(MESH, P("fsdp")), NamedSharding(MESH, P())
ONE = SingleDeviceSharding(jax.devices()[0])
DATA = {"position": [3, 4], "none": None, "text": "ü"}


def state():
    key = jax.random.PRNGKey(0)
    params = {
        "kernel": jax.device_put(jax.random.normal(key, (16, 8)), SPLIT),
        "layers": ({"bias": jax.device_put(jnp.arange(8, dtype=jnp.bfloat16), WHOLE)},),
    }
    return {"params": params, "counters": {"step": jnp.int32(7), "key": key, "on": jnp.array([True, False])}}


def like(trees, sharding=ONE):
    return abstract(trees, jax.tree.map(lambda _: sharding, trees))


def values(tree):
    return jax.tree.map(lambda x: (str(x.dtype), np.asarray(x).tolist()), tree)


def saved(folder, step=3):
    with closing(Checkpoints(folder)) as checkpoints:
        checkpoints.save(step, state(), DATA)
    return folder / "checkpoints" / str(step)


def test_what_is_restored_is_what_was_saved_though_its_arrays_were_donated_at_once(tmp_path):
    trees, expected = state(), values(state())
    spoil = jax.jit(lambda t: jax.tree.map(lambda x: ~x if x.dtype == bool else x + 1, t), donate_argnums=0)
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2, 3):
        checkpoints.save(step, trees, {**DATA, "step": step})
        trees = spoil(trees)
    checkpoints.close()
    assert values(trees) != expected
    found, data = Checkpoints(tmp_path).restore(2, like(state()))
    assert data == {**DATA, "step": 2}
    assert values(found) == values(spoil(state()))


def test_a_part_is_restored_alone_and_with_other_shardings(tmp_path):
    saved(tmp_path)
    for sharding in (ONE, WHOLE):
        found, _ = Checkpoints(tmp_path).restore(3, {"params": like(state()["params"], sharding)})
        assert values(found) == {"params": values(state()["params"])}
        assert found["params"]["kernel"].sharding == sharding


def test_a_checkpoint_is_there_when_it_is_whole_and_the_oldest_go(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.latest() is None
    assert not list(tmp_path.iterdir())  # looking makes no folder
    for step in (2, 10, 11):
        checkpoints.save(step, state(), DATA)
        assert checkpoints.latest() != step or (tmp_path / "checkpoints" / str(step) / "sizes.json").exists()
        checkpoints.wait()
        assert checkpoints.latest() == checkpoints.find(None) == step
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["10", "11"]
    assert checkpoints.find(10) == 10
    with pytest.raises(UserError, match="no checkpoint of step 2; there are those of 10, 11"):
        checkpoints.find(2)
    with pytest.raises(UserError, match="no checkpoint yet"):
        Checkpoints(tmp_path / "elsewhere").find(None)


def test_what_a_killed_run_left_half_written_is_no_checkpoint_and_goes_at_the_next_save(tmp_path):
    left = [tmp_path / "checkpoints" / name for name in ("5.partial", "6.partial.orbax-checkpoint-tmp")]
    for folder in left:
        folder.mkdir(parents=True)
    assert Checkpoints(tmp_path).latest() is None
    saved(tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["3"]


def test_a_checkpoint_that_is_being_written_is_finished_when_the_run_stops_with_an_error(tmp_path):
    def run():
        with closing(Checkpoints(tmp_path)) as checkpoints:
            checkpoints.save(3, state(), DATA)
            raise UserError("the loss is not finite")

    with pytest.raises(UserError, match="not finite"):
        run()
    assert Checkpoints(tmp_path).latest() == 3


FULL_DISK = """
import gc, resource, signal, sys
from contextlib import closing
from pathlib import Path
import jax, jax.numpy as jnp
from dcore_jax import UserError
from dcore_jax.checkpoint import Checkpoints
run = Path(sys.argv[1])
trees = {name: {str(i): jnp.ones((64, 64)) * i for i in range(20)} for name in ("params", "optimizer")}
with closing(Checkpoints(run)) as checkpoints:
    checkpoints.save(1, {"params": {"x": jnp.ones(4)}}, {})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
sys.setswitchinterval(1e-6)
checkpoints = Checkpoints(run)
for step in range(2, 2 + int(sys.argv[3])):
    try:
        checkpoints.save(step, trees, {"a": 1})
        checkpoints.wait()
    except UserError as error:
        print(error)
    gc.collect()
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["1"]
    assert checkpoints.latest() == 1
"""


@pytest.mark.parametrize("limit", [100_000, 500])  # no array fits; neither does a description of the arrays
def test_on_a_full_disk_each_checkpoint_fails_in_one_line_and_nothing_else_is_printed(limit, tmp_path):
    """Files may not grow past a limit. Threads switch often, so that what could be printed late is printed."""
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path), str(limit), "8"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stderr == ""
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert len(lines) == 8
    for line in lines:
        assert "the checkpoint could not be written" in line
        assert line.endswith("free some space and start the same line again")


def test_only_one_of_orbaxs_log_records_is_dropped_and_only_while_a_checkpoint_is_written(tmp_path):
    log = logging.getLogger("absl")
    before = list(log.filters)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state(), DATA)
    (added,) = set(log.filters) - set(before)
    record = logging.LogRecord("absl", logging.ERROR, "orbax/checkpoint/_src/x.py", 1, "", (), None, "run")
    assert added(record)
    checkpoints.close()
    assert log.filters == before


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "checkpoints").touch()
    with pytest.raises(UserError, match=r"could not be written \(.*File exists.*free some space") as error:
        Checkpoints(tmp_path).save(1, state(), DATA)
    assert "\n" not in str(error.value)


def _cut(path):
    (data, *_) = [p for p in (path / "params").rglob("d/*") if p.stat().st_size > 256]
    data.write_bytes(data.read_bytes()[:200])


def _other_json(path):
    (path / "data" / "data.json").write_text("{")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_cut, r"params/.* has 200 of \d+ bytes"),
        (lambda path: shutil.rmtree(path / "params"), r"params/.* has 0 of \d+ bytes"),
        (
            lambda path: (path / "sizes.json").unlink(),
            "no sizes.json: a partial copy, or of an older dcore_jax",
        ),
        (_other_json, "not restorable: .*line 1"),
        (lambda path: (path / "_CHECKPOINT_METADATA").unlink(), "not restorable"),
    ],
)
def test_a_damaged_checkpoint_is_one_line_that_says_what_to_delete(spoil, message, tmp_path, capfd):
    path = saved(tmp_path)
    spoil(path)
    with pytest.raises(UserError, match=message) as error:
        Checkpoints(tmp_path).restore(3, like(state()))
    assert str(error.value).startswith(f"{path}: not restorable: ")
    assert str(error.value).endswith("delete this folder to go on from the one before")
    assert "\n" not in str(error.value)
    assert capfd.readouterr().err == ""


def test_another_model_than_the_saved_one_is_told_by_the_first_array_that_differs(tmp_path):
    saved(tmp_path)
    trees = like(state())
    trees["params"]["kernel"] = jax.ShapeDtypeStruct((16, 4), jnp.float32, sharding=ONE)
    with pytest.raises(
        UserError, match=r"params.kernel is \(16, 8\) in this checkpoint and \(16, 4\) here; go on"
    ):
        Checkpoints(tmp_path).restore(3, trees)
    del trees["params"]["kernel"]
    with pytest.raises(UserError, match=r"params.kernel is \(16, 8\) in this checkpoint and missing here"):
        Checkpoints(tmp_path).restore(3, trees)
    with pytest.raises(UserError, match=r"ema.x is missing in this checkpoint and \(\) here"):
        Checkpoints(tmp_path).restore(3, {"ema": like({"x": jnp.zeros(())})})


def test_the_sizes_of_all_arrays_are_in_the_checkpoint(tmp_path):
    path = saved(tmp_path)
    sizes = json.loads((path / "sizes.json").read_text())
    assert {name.split("/")[0] for name in sizes} >= {"params", "counters"}
    assert all((path / name).stat().st_size == size for name, size in sizes.items())
