"""Whether a long life leaves anything behind, and whether all writes survive it.

Runs soak.c, whose use of the heap drifts while threads come and go, the process
forks and slabs are meshed; it frees everything in the end.  The long runs by hand:
    MESH_SOAK_SECONDS=1800 python3 -m pytest test/test_soak.py
"""

import os

import pytest

SECONDS = int(os.environ.get("MESH_SOAK_SECONDS", "45"))
MIB = 1 << 20
MESH = ",mesh:true"
CONSTANTLY = ",mesh:true,mesh_period_ms:0"


def life(program, *args, conf="", lib="release", seconds=SECONDS, before=()):
    """Runs soak.c; returns its result and its samples by name, the last of each."""
    run = program("soak").run(
        "-s", seconds, "-w", 4, *args, lib=lib, conf="abort_conf:true" + conf,
        before=before, timeout=3 * seconds + 120)
    assert run.returncode == 0, run
    result = run.json
    assert (result["bad"], result["failed"]) == (0, 0), run
    return result, {sample["when"]: sample for sample in result["samples"]}


def kernel(sample):
    """What the kernel needs for the program beside the pages themselves."""
    return sample["usage"] - sample["anon"] - sample["store"]


def assert_nothing_left(samples, mappings=50):
    start, end = samples["start"], samples["end"]
    mesh = end["mesh"]
    assert (mesh["groups"], mesh["followers"], mesh["saved"]) == (0, 0, 0)
    assert end["store"] == mesh["store"] == 0
    assert start["mappings"] < 200 and end["mappings"] < start["mappings"] + mappings
    # A fork closes the store, which the next mesh opens again.
    assert end["fds"] <= start["fds"] + 2
    # The first mesh starts the one that waits for writes after a fork.
    assert end["threads"] <= start["threads"] + 1
    assert end["pte"] < start["pte"] + MIB // 2


@pytest.mark.parametrize("conf", [CONSTANTLY, MESH])
def test_long_life(program, conf):
    """Everything is given back after a life of threads, forks and drift."""
    result, samples = life(program, conf=conf)
    assert result["writes"] > 10**6 and result["threads"] > SECONDS
    assert result["forks"] > SECONDS / 10
    assert max(s["mesh"]["followers"] for s in result["samples"]) > 100
    assert_nothing_left(samples)


def test_fork_storm(program):
    """Three threads fork without pause while slabs are meshed."""
    result, samples = life(
        program, "-f", 3, "-i", 0, "-b", 4, conf=CONSTANTLY,
        seconds=SECONDS // 3)
    assert result["forks"] > 100
    assert result["mesh"]["nmeshes"] > 0
    assert_nothing_left(samples)


def test_kernel_memory(program, cgroup):
    """The kernel's own memory for mappings, page tables and files comes back."""
    _, samples = life(program, "-u", cgroup.usage, conf=CONSTANTLY,
                      seconds=15, before=cgroup.enter)
    assert kernel(samples["end"]) < kernel(samples["start"]) + MIB


def test_decay_gives_back(program):
    """Without a word from the program, too: decay and the background do it."""
    _, samples = life(program, "-d", conf=MESH + ",dirty_decay_ms:1000", seconds=10)
    # What decays last, a little, may stay as it is.
    assert_nothing_left(samples, mappings=100)


def test_program_is_right(program):
    """On unpatched jemalloc the program finds nothing."""
    result, _ = life(program, lib="stock", seconds=5)
    assert result["checked"] > 10000 and result["samples"][0]["mesh"] is None
