"""Whether programs live on unharmed when a limit is reached while they are meshed.

Runs limits.c, which works before, at and after a limit.  At a limit meshing goes on
or comes to nothing; then stats.mesh.off says what to do.
"""

import os
from pathlib import Path

import pytest

QUIET = "abort_conf:true,mesh:true,mesh_period_ms:-1,background_thread:false"
BARRIERS = ["userfaultfd", "signal"]
CGROUP = Path("/sys/fs/cgroup/memory")
SHMEM_HUGE = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
# As root without the right to lock what memory it likes.
NO_IPC_LOCK = ["setpriv", "--bounding-set=-ipc_lock", "--inh-caps=-ipc_lock"]


def limits(program, name, conf=QUIET, **kwargs):
    """Runs the program; no byte is lost, it meshes afterwards and leaves nothing."""
    run = program("limits").run(name, conf=conf, timeout=300, **kwargs)
    assert run.returncode == 0, run
    steps = run.json
    assert steps["end"]["bad"] == 0 and steps["after"]["meshes"] > 1000, run
    assert steps["after"]["off"] == "", run
    end = steps["end"]
    assert (end["store_mappings"], end["store"], end["followers"]) == (0, 0, 0), run
    if "before" in steps:
        assert steps["before"]["meshes"] > 1000, run
    return steps


@pytest.mark.parametrize("barrier", BARRIERS)
@pytest.mark.parametrize("name, reason", [
    # The program has made all the mappings that there can be.
    ("maps", "vm.max_map_count"),
    ("maps-fork", "vm.max_map_count"),
    ("as", "RLIMIT_AS"),
    ("fsize-first", "RLIMIT_FSIZE"),
    ("fsize", "RLIMIT_FSIZE"),
    ("nofile-first", "RLIMIT_NOFILE"),
    ("lock-first", "locked"),
    ("lock", "locked"),
    ("lock-now", "locked"),
])
def test_limit(program, barrier, name, reason):
    """Nothing is meshed, and the reason says what to do about it."""
    limit = limits(program, name, f"{QUIET},mesh_barrier:{barrier}")["limit"]
    assert reason in limit["off"], limit
    # What was locked by then stays as it was, but not what came later.
    assert limit["meshes"] == 0 or name == "lock-now", limit


def test_file_size_lowered_later(program):
    """A store that is there goes on to work: its file grows no more, and no SIGXFSZ."""
    assert limits(program, "fsize")["open"]["meshes"] > 1000


def test_descriptors_used_up_later(program):
    """A store that is there needs no descriptor more."""
    assert limits(program, "nofile")["limit"]["meshes"] > 1000


def test_locked_memory_not_filled(program):
    """mlockall() finds no window to fill: the store does not grow by whole chunks."""
    for name in ("lock-now", "lock"):
        steps = limits(program, name)
        assert steps["limit"]["store"] < 2 * steps["before"]["store"], steps


def test_locked_object_stays_locked(program):
    """Pages that are locked are not meshed away, and the others are meshed."""
    steps = limits(program, "lock-some")
    locked = steps["lock"]["locked_kib"]
    assert locked >= 4 and steps["limit"]["locked_kib"] == locked, steps
    assert steps["limit"]["meshes"] > 1000, steps


def test_not_permitted_to_lock(program):
    """Where windows may not be locked as the program wants, that is said, too."""
    limit = limits(program, "lock-first",
                   before=["prlimit", "--memlock=8388608", *NO_IPC_LOCK])["limit"]
    assert limit["meshes"] == 0 and "locked" in limit["off"], limit


@pytest.mark.parametrize("barrier", BARRIERS)
def test_own_limit_of_mappings(program, barrier):
    """mesh_max_maps is not exceeded, and the statistics say that it holds meshing up."""
    run = program("limits").run(
        "none", conf=f"{QUIET},mesh_max_maps:300,mesh_barrier:{barrier}")
    assert run.returncode == 0, run
    for name in ("before", "limit"):
        step = run.json[name]
        assert 0 < step["store_mappings"] < 300 and step["mappings"] < 350, run
        assert "mesh_max_maps" in step["off"], run


def test_memory_group_at_its_limit(program):
    """Where 2 MiB are left, nothing hangs or is killed, and meshing helps out."""
    if not os.access(CGROUP / "memory.limit_in_bytes", os.W_OK):
        pytest.skip("no memory control group (v1) to make one in; with v2 the kernel "
                    "kills at the limit, and never refuses")
    group = CGROUP / f"mesh-test-{os.getpid()}"
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text(str(96 << 20))
        # Refuse instead of killing.
        (group / "memory.oom_control").write_text("1")
        steps = limits(program, "cgroup", before=[
            "sh", "-c", f'echo $$ >{group}/cgroup.procs && exec "$@"', "sh"])
        assert steps["limit"]["meshes"] > 1000, steps
    finally:
        group.rmdir()


def test_huge_pages_in_the_store(program):
    """The store has none, even if the kernel is told to use them for every memfd."""
    if not os.access(SHMEM_HUGE, os.W_OK):
        pytest.skip("huge pages of shared memory cannot be switched on here")
    old = SHMEM_HUGE.read_text().split("[")[1].split("]")[0]
    SHMEM_HUGE.write_text("always")
    try:
        steps = limits(program, "none")
    finally:
        SHMEM_HUGE.write_text(old)
    # A slab is 20 KiB at most.
    assert steps["before"]["store"] <= 20480 * steps["before"]["groups"], steps


def test_kernel_without_populate(program, preload):
    """Kernels before 5.14 do not know MADV_POPULATE_WRITE."""
    limits(program, "none", before=preload("faults") + [
        "MESH_FAULTS=madvise-populate-write:0:0:22"])


def test_no_proc(program, preload):
    """Where mappings cannot be counted there are none to be had; that is said."""
    run = program("limits").run("none", conf=QUIET, before=preload("faults") + [
        "MESH_FAULTS=open:0:0:2"])
    assert run.returncode == 0, run
    assert run.json["after"]["meshes"] == 0 and "/proc" in run.json["after"]["off"], run
