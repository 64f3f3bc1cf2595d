"""Whether meshing releases memory, says so truly, and gives everything back.

Runs release.c, which meshes only when it says so.  Physical memory is private
anonymous memory and the blocks of the store's memfd; a memory cgroup is the
witness that does not take our word for it.
"""

import pytest

MIB = 1 << 20
# Nothing but the pass may change what is measured.
CONF = ("abort_conf:true,mesh:true,mesh_period_ms:-1,background_thread:false,"
        "dirty_decay_ms:0,muzzy_decay_ms:0")


def physical(step):
    return step["rss_anon"] + step["store"]


def steps_of(run):
    """The steps of release.c, by round and name."""
    assert run.returncode == 0, run
    rounds = {}
    for step in run.json:
        rounds.setdefault(step["round"], {})[step["step"]] = step
    return rounds


@pytest.fixture(scope="module")
def rounds(program):
    return steps_of(program("release").run("-n", 4, conf=CONF))


def test_memory_falls_as_reported(rounds):
    """A pass frees what it says it saves."""
    for steps in rounds.values():
        before, after = steps["thinned"], steps["meshed"]
        saved = after["mesh"]["saved"]
        assert after["mesh"]["followers"] > 1000
        assert saved > before["live"]
        assert physical(before) - physical(after) == pytest.approx(saved, rel=0.1)
        assert before["stats.active"] - after["stats.active"] == pytest.approx(
            saved, rel=0.01)
        assert after["mesh"]["store"] == after["store"]


def test_followers_of_one_size(program):
    """Each follower saves one slab: one page, for objects of 256 bytes."""
    steps = steps_of(program("release").run("-z", 256, "-b", 64, "-n", 1, conf=CONF))[0]
    mesh = steps["meshed"]["mesh"]
    assert mesh["followers"] > 5000
    assert mesh["saved"] == mesh["followers"] * 4096


def test_debug_library_agrees(program):
    """With jemalloc's own assertions nothing is different."""
    steps = steps_of(program("release").run("-n", 2, lib="debug", conf=CONF))[1]
    assert steps["meshed"]["mesh"]["followers"] > 1000
    assert steps["freed"]["mesh"]["groups"] == 0


def test_pages_inside_slabs(program):
    """Without a mapping to spare, pages that nothing lives on go nevertheless, and
    what is allocated there later is well: release.c looks at every object."""
    steps = steps_of(program("release").run(
        "-z", 5120, "-b", 32, "-n", 2, conf=CONF + ",mesh_max_maps:1"))
    for step in steps.values():
        before, after = step["thinned"], step["meshed"]
        assert after["mesh"]["followers"] == 0
        assert physical(after) < 0.8 * physical(before)


def test_limit_of_mappings(program):
    """Meshing stops at mesh_max_maps mappings of the process."""
    steps = steps_of(program("release").run(
        "-n", 1, conf=CONF + ",mesh_max_maps:1000"))[0]
    assert steps["meshed"]["mesh"]["max_maps"] == 1000
    assert steps["meshed"]["mesh"]["followers"] > 100
    assert steps["meshed"]["mesh"]["nrefused"] > 0
    assert steps["meshed"]["mappings"] <= 1000


def test_mappings_are_kept_for_better(program):
    """A heap that is half full leaves most of few mappings to what it becomes later;
    the control takes all at once, on request, and has little to release with then."""
    conf = "abort_conf:true,mesh:true,mesh_max_maps:2000"
    kept, control = (program("stages").run(*args, conf=conf).json
                     for args in ((), ("-p",)))
    assert kept["bad"] == control["bad"] == 0
    assert 0 < kept["half"]["followers"] and kept["half"]["withheld"] > 0
    assert kept["half"]["mappings"] < 700 < 1800 < control["half"]["mappings"]
    assert kept["tenth"]["mappings"] > 1800
    assert kept["tenth"]["saved"] > 1.5 * control["tenth"]["saved"]


@pytest.mark.parametrize("lib", ["release", "debug"])
def test_freeing_without_mappings(program, lib):
    """Slabs part even when the program has used up vm.max_map_count."""
    steps = steps_of(program("release").run("-x", "-n", 1, lib=lib, conf=CONF))[0]
    assert steps["meshed"]["mesh"]["followers"] > 1000
    for name in ("freed", "zeroed"):
        assert steps[name]["mesh"]["groups"] == steps[name]["store"] == 0


def test_cgroup_agrees(program, cgroup):
    """The kernel's own count of the pages falls by as much."""
    rounds = steps_of(program("release").run(
        "-n", 2, "-u", cgroup.usage, conf=CONF, before=cgroup.enter))
    for steps in rounds.values():
        before, after = steps["thinned"], steps["meshed"]
        assert before["cgroup"] - after["cgroup"] == pytest.approx(
            after["mesh"]["saved"], rel=0.2)


def test_reading_costs_nothing(rounds):
    """Reading every object afterwards brings no memory back."""
    for steps in rounds.values():
        assert physical(steps["checked"]) - physical(steps["meshed"]) < MIB


@pytest.mark.parametrize("barrier", ["auto", "signal"])
def test_caches_of_idle_threads(program, barrier):
    """What idle threads have in their caches keeps no slabs, which mesh like others;
    and it is theirs to allocate later.  Without meshing, the control, it keeps all."""
    idle = program("idle")
    plain, mesh = (idle.run(conf=conf).json for conf in (
        "mesh:false", f"{CONF},mesh_barrier:{barrier}"))
    for run in (plain, mesh):
        assert (run["again"], run["bad"]) == (run["cached"], 0)
    assert mesh["mesh"]["followers"] > mesh["cached"] / 2
    assert mesh["idle"] - mesh["meshed"] > 0.8 * mesh["mesh"]["saved"]
    assert abs(plain["idle"] - plain["meshed"]) < MIB


def test_statistics_are_ordered(rounds):
    for steps in rounds.values():
        for step in steps.values():
            assert (step["live"] <= step["stats.allocated"] <= step["stats.active"]
                    <= step["stats.resident"]), step


def test_freeing_gives_everything_back(rounds):
    """No group, no store and no mapping outlives the objects.  Where passes on request
    went by what was counted a moment before, 1,400 to 1,800 mappings did."""
    for steps in rounds.values():
        for name in ("freed", "zeroed"):
            mesh = steps[name]["mesh"]
            assert (mesh["groups"], mesh["followers"], mesh["saved"]) == (0, 0, 0)
            assert mesh["store"] == steps[name]["store"] == 0
    first, last = rounds[0], rounds[3]
    assert last["zeroed"]["mappings"] < first["start"]["mappings"] + 50
    assert physical(last["zeroed"]) < physical(first["zeroed"]) + MIB


def test_small_objects_pack(program):
    """Where slabs are too full to mesh, threads do without LIFO caches, and the first
    slabs fill up, until the program grows again.  Without passes, the control, all
    slabs are half empty.  A trial that took its time made "packed_at_last" 1; to forget
    what is ready for the next objects as a thread flushes its cache made "kept" 9 to 77."""
    pack = program("pack")
    mesh, plain = (pack.run(
        conf=f"abort_conf:true,mesh:true,narenas:1,mesh_period_ms:{ms}").json
                   for ms in (0, -1))
    assert mesh["packed"] > 0 == plain["packed"] == mesh["bad"] == plain["bad"]
    assert mesh["slabs"] - mesh["nonfull"] > 100 + plain["slabs"] - plain["nonfull"]
    assert mesh["slabs"] < 0.9 * plain["slabs"]
    assert mesh["packed_at_last"] == 0 == mesh["kept"] == plain["kept"]


@pytest.mark.parametrize("lib", ["release", "debug"])
def test_caches_are_as_the_user_wants_them(program, lib):
    """Their sizes are read and written, they are flushed, taken down and set up while
    mesh has switched them off.  Not to undo that first made 9 reads odd; memory that
    is not the cache's trips an assertion of the debug build."""
    run = program("pack").run(
        "-t", 4, "-c", lib=lib,
        conf="abort_conf:true,mesh:true,mesh_period_ms:0,narenas:1")
    assert run.returncode == 0 and run.json["packed"] > 0, run
    assert run.json["odd"] == run.json["bad"] == 0, run


def test_unfragmented_programs_pay_nothing(program):
    """No pass, mapping or descriptor, however slow the machine, no thread, and where
    the user asked for one no wake-ups but those of background threads and a few more:
    with work the thread would wake twenty times a second."""
    decay = "dirty_decay_ms:0,muzzy_decay_ms:0"
    plain, mesh, lone = (program("quiet").run(lib=lib, conf=decay + conf).json
                         for lib, conf in (
                             ("stock", ",background_thread:true"),
                             ("release", ",mesh:true,background_thread:true"),
                             ("release", ",mesh:true")))
    assert lone["after"]["wakeups"] == lone["mesh"]["npasses"] == 0
    assert mesh["after"]["wakeups"] > 0
    assert mesh["mesh"]["off"] == ""
    assert (mesh["mesh"]["npasses"], mesh["mesh"]["nmeshes"]) == (0, 0)
    for when in ("before", "after"):
        assert mesh[when]["store_mappings"] == 0
        assert mesh[when]["descriptors"] == plain[when]["descriptors"]
        assert mesh[when]["mappings"] <= plain[when]["mappings"] + 2
    woke, woke_plain = (run["after"]["wakeups"] - run["before"]["wakeups"]
                        for run in (mesh, plain))
    assert woke <= woke_plain + 4


def test_random_places(program):
    """Slabs are filled in an order of their own each, whatever the program does; but
    objects that share a cache line are handed out one after the other.  Without
    randomness, the control, all of them lie side by side."""
    placed = program("placed")
    mesh, ordered = (placed.run(conf=f"{CONF},mesh_random:{random}").json
                     for random in ("true", "false"))
    for size in ("32", "256"):
        assert mesh[size]["again"] == ordered[size]["again"] == 0
        assert ordered[size]["behind"] > 0.9
        assert mesh[size]["first"] > 8 > ordered[size]["first"]
    # One of two is the first of its line, and of the others half lie before it.
    assert 0.4 < mesh["32"]["in_line"] <= 0.5
    assert mesh["32"]["behind"] < 0.35
    assert mesh["256"]["behind"] < 0.2
