"""Whether fork gives parent and child heaps of their own when slabs are meshed.

Runs forker.c: children and grandchildren check all objects as of the fork, write
to them while their parents do, and mesh on their own.  shared.c asks what is meshed
where parent and child share slabs.
"""

import pytest

BACKGROUND = "abort_conf:true,mesh:true,mesh_period_ms:0"
TICKS = BACKGROUND + ",background_thread:false"
SIGNAL = BACKGROUND + ",mesh_barrier:signal"


@pytest.mark.parametrize("lib, conf, args", [
    ("release", BACKGROUND, ()),
    # Writers wait while fork runs: the child's objects must be equal exactly.
    ("release", TICKS, ("-w",)),
    # Children of several forks are alive at a time, each with its own view.
    ("release", BACKGROUND, ("-n", 12, "-c", 4, "-d", 1)),
    # Daemons close every descriptor: the store's and the barrier's, too.
    ("release", BACKGROUND, ("-x",)),
    ("release", SIGNAL, ("-n", 2, "-d", 1)),
    # Slabs are copied while all threads stand still.
    ("release", SIGNAL, ("-n", 2, "-d", 1, "-x")),
    ("debug", BACKGROUND, ("-n", 1, "-b", 32)),
    ("debug", SIGNAL, ("-n", 2, "-d", 1, "-b", 32)),
    ("debug", TICKS, ("-n", 4, "-c", 2, "-d", 1, "-b", 32, "-w")),
])
def test_no_damage(program, lib, conf, args):
    """Each process finds its own objects, after thousands of meshes."""
    run = program("forker").run(*args, lib=lib, conf=conf)
    assert run.returncode == 0, run
    result = run.json
    assert (result["bad"], result["failed"]) == (0, 0), run
    assert result["forks"] > 1 and result["checked"] > 100000, run
    assert result["followers"] > 1000, run
    assert result["child_meshes"] > 1000, run


VIEWS = "abort_conf:true,mesh:true,mesh_period_ms:-1"


@pytest.mark.parametrize("lib, conf, args, generation", [
    # No child is left: the ranges go on as before the fork.
    ("release", VIEWS, (), 0),
    ("debug", VIEWS, (), 0),
    # A fork while the protection of the last one is being lifted.
    ("release", VIEWS, ("-a", "-n", 20), 0),
    ("debug", VIEWS, ("-a", "-n", 20), 0),
    # The barrier is a new userfaultfd, which the thread that makes views has, too.
    ("release", VIEWS, ("-u",), 0),
    ("debug", VIEWS, ("-u",), 0),
    # Children that are parents in turn.
    ("release", VIEWS + ",narenas:2", ("-g",), 0),
    # A pass does not wait for the child: the generation ends.
    ("release", VIEWS, ("-s",), 3),
    ("debug", VIEWS, ("-s",), 3),
    # Nobody could make views later.
    ("release", VIEWS + ",background_thread:false", (), 3),
    ("release", VIEWS + ",mesh_barrier:signal", ("-s",), 3),
])
def test_views(program, lib, conf, args, generation):
    """Children see the heap as of the fork, whoever writes, and leave nothing.

    What is meshed is as much in the end as before, all in one store.
    """
    run = program("views").run(*args, lib=lib, conf=conf)
    assert run.returncode == 0, run
    result = run.json
    assert (result["bad"], result["failed"]) == (0, 0), run
    assert result["generations"] == 1, run
    assert result["followers"] > 1000, run
    assert result["mesh"]["followers"] > 0.95 * result["followers"], run
    assert result["mesh"]["generation"] == generation, run
    # So that to protect them again takes the less time.
    assert (result["registered"] > 500) == (conf == VIEWS or "narenas" in conf), run


def test_damage_without_handlers(program):
    """The negative control: where parent and child share slabs, damage is found.

    _Fork() passes over the handlers that make meshed slabs private.
    """
    run = program("forker").run("-R", "-n", 2, conf=TICKS)
    assert run.json and run.json["followers"] > 1000, run
    assert run.json["bad"] > 0, run


def shared(program, *args, conf):
    run = program("shared").run(*args, conf=conf)
    assert run.returncode == 0 and run.json["bad"] == 0, run
    return run.json


def test_scan_goes_on(program):
    """A scan that a fork has put an end to goes on from its place, not at the first
    slabs, though there is more to mesh than when it was there."""
    seen = shared(program, "scan", conf=TICKS)
    assert 0 < seen["before"] < seen["all"] / 4 and seen["low"] == 0, seen


@pytest.mark.parametrize("barrier", ["auto", "signal"])
def test_shared_in_part(program, barrier):
    """Slabs of which a child has more than half for itself mesh there, others do not."""
    conf = f"{VIEWS},background_thread:false,mesh_barrier:{barrier}"
    for pages, meshed in ((2, False), (3, True)):
        seen = shared(program, "own", pages, conf=conf)
        assert (seen["followers"] > 500) == (seen["followers"] > 0) == meshed, seen


def test_shared_slabs_do_not_pack(program):
    """A child does not fill slabs that are its parent's, too, before others; it does
    when it has all for itself."""
    assert shared(program, "pack", 0, conf=TICKS)["packed"] == 0
    assert shared(program, "pack", 1, conf=TICKS)["packed"] > 0


def test_program_is_right(program):
    """On unpatched jemalloc the program finds nothing, with _Fork() either."""
    for args in ("-w", "-R"):
        run = program("forker").run("-n", 2, "-b", 16, args, lib="stock")
        assert run.returncode == 0, run
        assert run.json["checked"] > 10000 and run.json["mesh"] is None, run
