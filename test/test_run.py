"""The search for runs of slabs (src/mesh_run.c), alone, against a model in Python.

Compiled here, with $CFLAGS if set, as in test_match.py.  Bitmaps are Python
integers, bit r = region r is live.
"""

import ctypes
import os
import random
import shlex
import subprocess

import pytest

from test_match import GUARD, SRC

LONGEST = 64


class Found(ctypes.Structure):
    """mesh_run_found_t"""
    _fields_ = [(name, ctypes.c_uint32) for name in ("follower", "leader", "n")]


class Runner:
    """The compiled module."""

    def __init__(self, out):
        library = out / "mesh_run.so"
        subprocess.run(
            ["gcc", "-std=c11", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror",
             *shlex.split(os.environ.get("CFLAGS", "-O2")),
             "-I", str(SRC), str(SRC / "mesh_run.c"), "-o", str(library)],
            check=True)
        c = self.c = ctypes.CDLL(str(library))
        void, size, uint = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint
        for name, result, arguments in (
                ("size", size, (uint, size)),
                ("nwords", size, (size,)),
                ("begin", void, (void, uint, size, void, void, void)),
                ("sweep", None, (void, size, uint)),
                ("step", ctypes.c_bool, (void, ctypes.POINTER(Found)))):
            function = getattr(c, "mesh_run_" + name)
            function.restype, function.argtypes = result, arguments

    def run(self, nregs, bitmaps, adjacent, stays, sweeps):
        """What each sweep (nleaders, min) finds, as (follower, leader, n).

        The scratch memory starts with garbage and has guards on both sides.
        """
        n, nwords = len(bitmaps), (nregs + 63) // 64
        line = self.c.mesh_run_nwords(n) * 8

        def buffer(data):
            return ctypes.create_string_buffer(data, len(data) + 1)

        def bits(flags):
            return buffer(sum(1 << i for i, flag in enumerate(flags) if flag)
                          .to_bytes(line, "little"))

        live = buffer(b"".join(b.to_bytes(nwords * 8, "little") for b in bitmaps))
        vectors = bits(adjacent), bits(stays)
        size = self.c.mesh_run_size(nregs, n)
        assert size % 64 == 0
        memory = ctypes.create_string_buffer(size + 2 * GUARD + 64)
        ctypes.memset(memory, 0xA5, len(memory))
        start = -(-(ctypes.addressof(memory) + GUARD) // 64) * 64
        offset = start - ctypes.addressof(memory)
        r = self.c.mesh_run_begin(
            start, nregs, n, *map(ctypes.addressof, (live, *vectors)))
        results = []
        for nleaders, least in sweeps:
            results.append([])
            self.c.mesh_run_sweep(r, nleaders, least)
            found = Found()
            while self.c.mesh_run_step(r, ctypes.byref(found)):
                if found.n:
                    results[-1].append((found.follower, found.leader, found.n))
        raw = memory.raw
        assert set(raw[:offset]) == {0xA5}, "written before the scratch memory"
        assert set(raw[offset + size:]) == {0xA5}, "written behind it"
        return results


@pytest.fixture(scope="module")
def runner(tmp_path_factory):
    return Runner(tmp_path_factory.mktemp("run"))


def model(bitmaps, adjacent, stays, sweeps):
    """The same, as the definition says, place by place."""
    unions, follows, results = list(bitmaps), set(), []
    for nleaders, least in sweeps:
        results.append([])
        nleaders = min(nleaders, len(bitmaps))
        leads = set()
        begin = 0
        for i in range(nleaders):
            if i + 1 == nleaders or not adjacent[i]:
                if i + 1 - begin >= least:
                    leads.update(range(begin, i + 1))
                begin = i + 1
        leads -= follows

        def can_follow(i):
            return i >= nleaders and i not in follows and not stays[i]

        at, accepted = len(bitmaps) - 1, False
        while at >= nleaders and nleaders:
            if not can_follow(at):
                at, accepted = at - 1, False
                continue
            if not (accepted and adjacent[at]):
                begin = at
                while can_follow(begin - 1) and adjacent[begin - 1]:
                    begin -= 1
                accepted = at + 1 - begin >= least
                if not accepted:
                    at = begin - 1
                    continue
            best, place = 0, None
            for top in sorted(leads):
                n = 0
                while (n < LONGEST and can_follow(at - n) and top - n in leads
                       and (n == 0 or adjacent[at - n] and adjacent[top - n])
                       and not bitmaps[at - n] & unions[top - n]):
                    n += 1
                if n > best:
                    best, place = n, top - n + 1
            if best:
                follower = at - best + 1
                results[-1].append((follower, place, best))
                for i in range(best):
                    unions[place + i] |= bitmaps[follower + i]
                    follows.add(follower + i)
                leads -= follows
            at -= max(best, 1)
    return results


def slabs(rng, n, nregs, occupancy, gaps, staying):
    return ([sum(1 << r for r in range(nregs) if rng.random() < occupancy)
             for _ in range(n)],
            [rng.random() >= gaps and i + 1 < n for i in range(n)],
            [rng.random() < staying for _ in range(n)])


@pytest.mark.parametrize("nregs, occupancy", [
    (1, .3), (8, .1), (8, .4), (16, .2), (64, .05), (65, .1), (512, .005)])
@pytest.mark.parametrize("gaps, staying", [(0, 0), (.1, .05), (.5, .3)])
@pytest.mark.parametrize("n", [1, 2, 63, 64, 65, 200, 700])
def test_same_as_model(runner, nregs, occupancy, gaps, staying, n):
    """It finds the same runs as a search of all places."""
    rng = random.Random(f"{nregs} {occupancy} {gaps} {n}")
    bitmaps, adjacent, stays = slabs(rng, n, nregs, occupancy, gaps, staying)
    sweeps = [(n // 4, 8), (n // 2, 4), (n // 2, 1), (n * 3 // 4, 1), (n + 5, 1), (0, 1)]
    assert (runner.run(nregs, bitmaps, adjacent, stays, sweeps)
            == model(bitmaps, adjacent, stays, sweeps))


def test_longest(runner):
    """A run has 64 slabs at most."""
    n = 4 * LONGEST
    found = runner.run(8, [0] * n, [True] * n, [False] * n, [(n // 2, 1)])[0]
    assert [run[2] for run in found] == [LONGEST] * 2


def test_few_mappings(runner):
    """Runs are as long as chance allows: log(places) / log(1 / q)."""
    rng = random.Random(1)
    n = 8192
    bitmaps, adjacent, stays = slabs(rng, n, 16, .2, 0, 0)
    found = runner.run(16, bitmaps, adjacent, stays, [(n // 2, 1)])[0]
    # q = (1 - .2 * .2) ** 16 = .52: 12.7 slabs with all places to choose from.
    assert sum(run[2] for run in found) == n // 2
    assert n // 2 / len(found) > 6
