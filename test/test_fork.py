"""Whether fork gives parent and child heaps of their own when slabs are meshed.

Runs forker.c: children and grandchildren check all objects as of the fork, write
to them while their parents do, and mesh on their own.
"""

import pytest

BACKGROUND = "abort_conf:true,mesh:true,mesh_period_ms:0"
TICKS = BACKGROUND + ",background_thread:false"


@pytest.mark.parametrize("lib, conf, args", [
    ("release", BACKGROUND, ()),
    # Writers wait while fork runs: the child's objects must be equal exactly.
    ("release", TICKS, ("-w",)),
    # Children of several forks are alive at a time, each with its own view.
    ("release", BACKGROUND, ("-n", 12, "-c", 4, "-d", 1)),
    # Daemons close every descriptor: the store's and the barrier's, too.
    ("release", BACKGROUND, ("-x",)),
    ("debug", BACKGROUND, ("-n", 1, "-b", 32)),
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
    assert result["mesh"]["generation"] > 0, run


def test_damage_without_handlers(program):
    """The negative control: where parent and child share slabs, damage is found.

    _Fork() passes over the handlers that make meshed slabs private, and the
    program undoes that a child without them does not inherit such slabs.
    """
    run = program("forker").run("-R", "-n", 2, conf=TICKS)
    assert run.json and run.json["followers"] > 1000, run
    assert run.json["bad"] > 0, run


def test_program_is_right(program):
    """On unpatched jemalloc the program finds nothing, with _Fork() either."""
    for args in ("-w", "-R"):
        run = program("forker").run("-n", 2, "-b", 16, args, lib="stock")
        assert run.returncode == 0, run
        assert run.json["checked"] > 10000 and run.json["mesh"] is None, run
