"""The matching of slabs (src/mesh_match.c), alone, against models in Python.

The module is compiled here, with $CFLAGS if set; a run under the sanitizers is
    CFLAGS="-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all" \\
    LD_PRELOAD="$(gcc -print-file-name=libasan.so)" ASAN_OPTIONS=detect_leaks=0 \\
    python3 -m pytest test/test_match.py
Bitmaps are Python integers, bit r = region r is live.
"""

import ctypes
import faulthandler
import os
import random
import shlex
import subprocess
from pathlib import Path

import pytest

SRC = Path(__file__).resolve().parent.parent / "src"
END = 2**32 - 1
GUARD = 256


class Matcher:
    """The compiled module."""

    def __init__(self, source, out):
        library = out / (source.stem + ".so")
        subprocess.run(
            ["gcc", "-std=c11", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror",
             *shlex.split(os.environ.get("CFLAGS", "-O2")),
             "-I", str(SRC), str(source), "-o", str(library)],
            check=True)
        c = self.c = ctypes.CDLL(str(library))
        void, size, u32 = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint32
        for name, result, arguments in (
                ("size", size, (ctypes.c_uint, size)),
                ("begin", void, (void, ctypes.c_uint, size, void)),
                ("step", ctypes.c_bool, (void, size)),
                ("ngroups", size, (void,)),
                ("first", u32, (void, size)),
                ("next", u32, (void, size, u32))):
            function = getattr(c, "mesh_match_" + name)
            function.restype, function.argtypes = result, arguments

    def groups(self, m):
        """The groups as lists of slabs; a broken ring ends it."""
        result = []
        for g in range(self.c.mesh_match_ngroups(m)):
            members = []
            i = self.c.mesh_match_first(m, g)
            while i != END:
                members.append(i)
                assert len(members) < 10**6
                i = self.c.mesh_match_next(m, g, i)
            result.append(members)
        return result

    def run(self, nregs, bitmaps, work=10**9, at_step=None):
        """Matches; returns the groups and the number of steps it took.

        The scratch memory starts with garbage and has guards on both sides.
        """
        n, nwords = len(bitmaps), (nregs + 63) // 64
        live = b"".join(b.to_bytes(nwords * 8, "little") for b in bitmaps)
        live_buffer = ctypes.create_string_buffer(live, max(len(live), 1))
        size = self.c.mesh_match_size(nregs, n)
        assert size % 64 == 0
        memory = ctypes.create_string_buffer(size + 2 * GUARD + 64)
        ctypes.memset(memory, 0xA5, len(memory))
        start = -(-(ctypes.addressof(memory) + GUARD) // 64) * 64
        offset = start - ctypes.addressof(memory)

        m = self.c.mesh_match_begin(start, nregs, n, ctypes.addressof(live_buffer))
        steps = 1
        while not self.c.mesh_match_step(m, work):
            steps += 1
            if at_step:
                at_step(m)
        assert self.c.mesh_match_step(m, work), "finished, and then not"

        raw = memory.raw
        assert set(raw[:offset]) == {0xA5}, "written before the scratch memory"
        assert set(raw[offset + size:]) == {0xA5}, "written behind it"
        assert live_buffer.raw[:len(live)] == live, "bitmaps were changed"
        return self.groups(m), steps


def faults(nregs, bitmaps, groups):
    """What is wrong with a partition; nothing, if it can be meshed."""
    result = []
    full = (1 << nregs) - 1
    if sorted(i for g in groups for i in g) != list(range(len(bitmaps))):
        return ["not a partition"]
    for g in groups:
        live = [{r for r in range(nregs) if bitmaps[i] >> r & 1} for i in g]
        if len(set().union(*live)) != sum(map(len, live)):
            result.append("regions overlap")
        union = 0
        for i in g:
            if g[0] != i and union == full:
                result.append("full group took another")
            union |= bitmaps[i]
        keys = [(-bitmaps[i].bit_count(), i) for i in g]
        if keys != sorted(keys):
            result.append("not in order of placement")
    return result


def first_fit(nregs, bitmaps):
    """First-fit decreasing, as its definition says."""
    full = (1 << nregs) - 1
    groups, unions = [], []
    for i in sorted(range(len(bitmaps)), key=lambda i: (-bitmaps[i].bit_count(), i)):
        for g, union in enumerate(unions):
            if not union & bitmaps[i] and union != full:
                groups[g].append(i)
                unions[g] |= bitmaps[i]
                break
        else:
            groups.append([i])
            unions.append(bitmaps[i])
    return groups


def split_mesher(rng, bitmaps, passes=10, t=64):
    """Number of slabs left by Mesh's random pairs."""
    slabs = list(bitmaps)
    for _ in range(passes):
        rng.shuffle(slabs)
        left, right = slabs[:len(slabs) // 2], slabs[len(slabs) // 2:]
        used = set()
        for step in range(t):
            for j, bitmap in enumerate(left):
                k = (j + step) % len(right)
                if bitmap is not None and k not in used and not bitmap & right[k]:
                    right[k] |= bitmap
                    left[j] = None
                    used.add(k)
        slabs = [b for b in left if b is not None] + right
    return len(slabs)


def fewest_groups(bitmaps):
    """The optimum, by trying all partitions."""
    best = len(bitmaps)

    def place(i, unions):
        nonlocal best
        if len(unions) >= best:
            return
        if i == len(bitmaps):
            best = len(unions)
            return
        for g, union in enumerate(unions):
            if not union & bitmaps[i]:
                place(i + 1, unions[:g] + [union | bitmaps[i]] + unions[g + 1:])
        place(i + 1, unions + [bitmaps[i]])

    place(0, [])
    return best


def random_slab(rng, nregs, occupancy):
    return sum(1 << r for r in range(nregs) if rng.random() < occupancy)


def random_slabs(rng, nregs, n, occupancies):
    """Slabs with at least one live region, of the occupancies in turn."""
    return [random_slab(rng, nregs, occupancies[i % len(occupancies)])
            or 1 << rng.randrange(nregs) for i in range(n)]


def adversarial(rng, nregs):
    """Name and bitmaps of inputs with a twist, some over a block of groups."""
    full = (1 << nregs) - 1
    some = random_slab(rng, nregs, .5)
    half = [random_slab(rng, nregs, .5) for _ in range(60)]
    yield "none", []
    yield "one empty", [0]
    yield "one full", [full]
    yield "one", [some]
    yield "all empty", [0] * 70
    yield "all full", [full] * 1100
    yield "empty and full", [0, full] * 40
    yield "full, then empty with nowhere to go", [full] * 513 + [0] * 3
    yield "identical", [some | 1] * 1100
    yield "complements", half + [full ^ b for b in half]
    yield "single bits", [1 << rng.randrange(nregs) for _ in range(600)]
    yield "one bit, all the same", [1 << nregs - 1] * 1030
    yield "all but one bit", [full ^ 1 << rng.randrange(nregs) for _ in range(600)]
    yield "each bit and its complement", [
        b for r in range(nregs) for b in (1 << r, full ^ 1 << r)]
    yield "last word only", [full >> nregs // 2 << nregs // 2, 1 << nregs - 1] * 30
    yield "some of all", [0, full, some, full ^ some, 1, 1 << nregs - 1] * 30


@pytest.fixture(scope="module")
def matcher(tmp_path_factory):
    return Matcher(SRC / "mesh_match.c", tmp_path_factory.mktemp("match"))


# All numbers of words, with the last word barely used, nearly full, and full.
NREGS = [1, 2, 3, 8, 16, 63] + [w * 64 + d for w in range(1, 8) for d in (0, 1, 63)] + [512]


def check(matcher, nregs, bitmaps):
    groups, _ = matcher.run(nregs, bitmaps)
    assert faults(nregs, bitmaps, groups) == []
    assert groups == first_fit(nregs, bitmaps)


@pytest.mark.parametrize("nregs", NREGS)
def test_adversarial(matcher, nregs):
    for name, bitmaps in adversarial(random.Random(nregs), nregs):
        try:
            check(matcher, nregs, bitmaps)
        except AssertionError as error:
            raise AssertionError(f"slabs: {name}") from error


@pytest.mark.parametrize("nregs", NREGS)
def test_random(matcher, nregs):
    rng = random.Random(nregs)
    for _ in range(12):
        occupancies = [rng.random() ** 2 for _ in range(rng.randrange(1, 4))]
        check(matcher, nregs, [random_slab(rng, nregs, occupancies[i % len(occupancies)])
                               for i in range(rng.randrange(200))])


@pytest.mark.parametrize("nregs,occupancy", [(8, .3), (16, .5), (64, .3), (300, .1)])
def test_many_blocks(matcher, nregs, occupancy):
    check(matcher, nregs, random_slabs(random.Random(1), nregs, 4000, [occupancy]))


def test_tiny_against_optimum(matcher):
    """Groups never exceed live * (optimum - 1) + 1, live being the number of live
    regions of any slab of the last group: each older group holds one of the
    slab's regions, so one region is in (groups - 1) / live of them and in the
    slab, and slabs that share a region are in different groups of any cover.
    """
    rng = random.Random(7)
    optimal = 0
    for _ in range(1500):
        nregs = rng.choice([2, 3, 5, 8, 16, 65, 130])
        bitmaps = random_slabs(rng, nregs, rng.randrange(1, 8), [rng.random()])
        groups, _ = matcher.run(nregs, bitmaps)
        assert faults(nregs, bitmaps, groups) == []
        optimum = fewest_groups(bitmaps)
        live = bitmaps[groups[-1][-1]].bit_count()
        assert optimum <= len(groups) <= live * (optimum - 1) + 1
        optimal += len(groups) == optimum
    assert optimal >= 1480


def test_optimal_cases(matcher):
    """Half-live slabs fit their complements only; single bits fit all but
    themselves.  First-fit is optimal for both."""
    rng = random.Random(8)
    for _ in range(300):
        nregs = rng.choice([2, 4, 8, 16, 128])
        full = (1 << nregs) - 1
        halves = [sum(1 << r for r in rng.sample(range(nregs), nregs // 2)) for _ in range(3)]
        for bitmaps in (
                rng.sample(halves + [full ^ b for b in halves], 6) + halves[:1],
                [1 << rng.randrange(nregs) for _ in range(7)]):
            assert len(matcher.run(nregs, bitmaps)[0]) == fewest_groups(bitmaps)


@pytest.mark.parametrize("occupancies", [
    [.1], [.2], [.3], [.4], [.5], [.05, .6], [.1, .3, .5], [.02, .5]])
@pytest.mark.parametrize("nregs", [8, 16, 32, 64])
def test_releases_no_less_than_split_mesher(matcher, nregs, occupancies):
    rng = random.Random(9)
    bitmaps = random_slabs(rng, nregs, 1200, occupancies)
    assert len(matcher.run(nregs, bitmaps)[0]) <= split_mesher(rng, bitmaps)


@pytest.mark.parametrize("nregs,n,occupancy", [(8, 3000, .4), (64, 1500, .3), (512, 700, .05)])
def test_slices(matcher, nregs, n, occupancy):
    """Any slicing gives the same groups, the groups of an unfinished matching are
    right so far, and a step works as much as it may and not much more."""
    bitmaps = random_slabs(random.Random(10), nregs, n, [occupancy])
    groups, steps = matcher.run(nregs, bitmaps)
    assert steps == 1

    seen = 0

    def look(m):
        nonlocal seen
        seen += 1
        if seen % 997 == 0:
            for part, whole in zip(matcher.groups(m), groups):
                assert part == whole[:len(part)]

    # A step of 1 does one indivisible piece of at least one unit.
    sliced, pieces = matcher.run(nregs, bitmaps, work=1, at_step=look)
    assert sliced == groups
    assert pieces >= 3 * n
    for work in (2, 100, 5000):
        sliced, steps = matcher.run(nregs, bitmaps, work=work)
        assert sliced == groups
        # Not more than `work` and one piece's overshoot, in units ...
        assert steps >= pieces / (work + 3 * nregs + 5)
        # ... and, as the pieces are of at most 3 * nregs + 5 units, not idle.
        assert steps <= pieces * (3 * nregs + 5) / work + 1


def test_hints_spare_repeated_searches(matcher):
    """Work for slabs that all have one bitmap does not grow as their square."""
    work = [matcher.run(16, [0x00FF] * n, work=1)[1] for n in (2048, 4096)]
    assert work[1] <= 2.1 * work[0]


def test_memory(matcher):
    for nregs in NREGS:
        per_slab = (matcher.c.mesh_match_size(nregs, 200000)
                    - matcher.c.mesh_match_size(nregs, 100000)) / 100000
        assert per_slab <= 22.5 + nregs / 8
        assert matcher.c.mesh_match_size(nregs, 0) <= 3700


@pytest.mark.parametrize("groups,fault", [
    ([[0, 1, 2], [3, 4]], None),
    ([[0, 1], [3, 4]], "not a partition"),
    ([[0, 1, 2], [2], [3, 4]], "not a partition"),
    ([[0, 1, 2], [3, 4], [5]], "not a partition"),
    ([[0, 1], [3, 4, 2]], "regions overlap"),
    ([[0, 1, 2, 4], [3]], "full group took another"),
    ([[1, 0, 2], [3, 4]], "not in order of placement"),
])
def test_checker_finds_faults(groups, fault):
    found = faults(4, [0b0011, 0b0100, 0b1000, 0b1011, 0], groups)
    assert (fault in found) if fault else (found == [])


@pytest.mark.parametrize("code,broken", [
    ("(c->w[w] | d->w[w])", "(c->w[w] & d->w[w])"),
    ("differ |= a[w] ^ b[w]", "differ &= a[w] ^ b[w]"),
    ("block[r] = (match_line_t){{0}}", "block[r].w[0] = 0"),
    ("match_bit_set(&block[m->nregs], bit)", "(void)bit"),
    ("m->next[i] = m->next[m->last[g]]", "m->next[i] = i"),
    ("m->block++;", "m->block += 1 + (m->block & 1);"),
    ("(3 * sizeof(uint32_t) +", "(2 * sizeof(uint32_t) +"),
    ("return BLOCK_NGROUPS;", "return 0;"),
    ("? m->hint->block", "? 0"),
    ("used >= work", "used >= 30 * work"),
])
def test_broken_module_is_found(tmp_path, code, broken):
    """A module with a bug put in fails the tests above, or crashes them: hence the
    process of its own."""
    source = (SRC / "mesh_match.c").read_text()
    assert source.count(code) == 1
    (tmp_path / "broken.c").write_text(source.replace(code, broken))
    matcher = Matcher(tmp_path / "broken.c", tmp_path)
    child = os.fork()
    if child == 0:
        faulthandler.disable()
        try:
            for nregs in (16, 64):
                for _, bitmaps in adversarial(random.Random(nregs), nregs):
                    check(matcher, nregs, bitmaps)
                check(matcher, nregs, random_slabs(random.Random(1), nregs, 4000, [.3]))
            test_slices(matcher, 64, 1500, .3)
            test_hints_spare_repeated_searches(matcher)
        except AssertionError:
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] != 0
