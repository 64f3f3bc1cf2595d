"""What the benches share: the mallocs to compare, programs and a redis-server on a
chosen one of them, physical memory and CPU time, memory cgroups, medians, tables
and pictures.

Physical memory of a process is RssAnon plus the blocks of its stores (the memfds
that hold meshed slabs, or Mesh's whole heap).  VmRSS counts a meshed page once per
alias, PSS misses store pages that no page table maps at the moment, and reading smaps
stops a process that has many mappings; none of them is used.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sysconfig
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
TEST = HERE.parent / "test"
BUILD = HERE.parent / "build"
OUT = BUILD / "bench"
MB = 1 << 20  # as Redis counts: maxmemory 100mb
CGROUPS = Path("/sys/fs/cgroup")
STORES = ("/memfd:jemalloc-mesh", "/memfd:mesh_arena")
START_TIMEOUT_S = 10
# Each variant has its colour in all pictures.
COLOURS = {"stock": "tab:red", "mesh off": "tab:pink", "mesh": "tab:blue",
           "mesh ordered": "tab:cyan", "mesh signal": "navy",
           "glibc": "tab:olive", "mimalloc": "tab:green",
           "tcmalloc": "tab:orange", "Mesh": "tab:purple",
           "defrag": "tab:brown", "valkey": "tab:gray", "valkey mesh": "black"}


def fail(message):
    """Ends the program with one sentence that says what is wrong."""
    raise SystemExit(f"error: {message}")


def library(directory):
    """The shared jemalloc in directory, links resolved as in /proc/PID/maps."""
    path = Path(directory) / "libjemalloc.so.2"
    if not path.exists():
        fail(f"{path} is missing; `./run build` makes it.")
    return path.resolve()


def environment(**settings):
    """The environment without what would choose or set up another malloc."""
    env = {k: v for k, v in os.environ.items() if k not in
           ("MALLOC_CONF", "LD_PRELOAD", "LD_LIBRARY_PATH")}
    return env | {k: v for k, v in settings.items() if v}


# Mallocs, and programs to run on them.

class Malloc:
    """A library to preload, and its MALLOC_CONF."""

    def __init__(self, path, conf=""):
        self.path, self.conf = Path(path).resolve(), conf

    def environment(self):
        return environment(LD_PRELOAD=str(self.path), MALLOC_CONF=self.conf)

    def check(self, path):
        """Fails unless path, which a program reports, is this library."""
        if os.path.realpath(path) != str(self.path):
            fail(f"the program runs on {path} instead of {self.path}.")


class LinkedMalloc(Malloc):
    """A libjemalloc.so.2 for a program that is linked to one, as Debian's Redis."""

    def environment(self):
        return environment(LD_LIBRARY_PATH=str(self.path.parent),
                           MALLOC_CONF=self.conf)


def system_library(name):
    """A library of the system, None if it is not installed."""
    path = Path("/usr/lib", sysconfig.get_config_var("MULTIARCH"), name)
    return path if path.exists() else None


def peers():
    """The mallocs that people pick instead: those of Debian, and the build of
    Mesh that $MESH_LIB names."""
    paths = {"glibc": system_library("libc.so.6"),
             "mimalloc": system_library("libmimalloc.so.2"),
             "tcmalloc": system_library("libtcmalloc_minimal.so.4"),
             "Mesh": os.environ.get("MESH_LIB")}
    return {name: Malloc(path) for name, path in paths.items() if path}


def add_arguments(parser, runs):
    """The options of every bench that compares jemallocs."""
    parser.add_argument("--runs", type=int, default=runs,
                        help="runs of each malloc (default %(default)s)")
    parser.add_argument("--stock-lib", default=BUILD / "stock/lib",
                        help="directory of the stock libjemalloc.so.2")
    parser.add_argument("--mesh-lib", default=BUILD / "lib",
                        help="directory of the libjemalloc.so.2 that meshes")
    parser.add_argument("--mesh-conf", default="mesh:true",
                        help="MALLOC_CONF of the latter (default %(default)s)")
    parser.add_argument("--barrier", dest="mesh_conf", metavar="NAME",
                        type="mesh:true,mesh_barrier:{}".format,
                        default=argparse.SUPPRESS,
                        help="short for --mesh-conf mesh:true,mesh_barrier:NAME")


def add_only(parser):
    """The option of those that compare it with other mallocs, too."""
    parser.add_argument("--only", nargs="+", metavar="NAME",
                        help="compare only these (and stock)")


def linked_pair(args):
    """stock and mesh for a server that is linked to a libjemalloc.so.2."""
    return {"stock": LinkedMalloc(library(args.stock_lib)),
            "mesh": LinkedMalloc(library(args.mesh_lib), args.mesh_conf)}


def linked_servers(args):
    """The same, and mesh by signals."""
    known = linked_pair(args)
    known["mesh signal"] = LinkedMalloc(
        known["mesh"].path, args.mesh_conf + ",mesh_barrier:signal")
    return known


def mallocs(args, conf=""):
    """Name and Malloc of all that are to be compared; conf is for the jemallocs
    that do not mesh."""
    stock, mesh = library(args.stock_lib), library(args.mesh_lib)
    known = {"stock": Malloc(stock, conf),
             "mesh off": Malloc(mesh, conf),
             "mesh": Malloc(mesh, args.mesh_conf),
             "mesh ordered": Malloc(mesh,
                                    args.mesh_conf + ",mesh_random:false"),
             **peers()}
    return select(known, args.only)


def select(known, only):
    """stock and those of known that are asked for; all if nothing is."""
    unknown = set(only or ()) - set(known)
    if unknown:
        fail(f"there is no {unknown.pop()} among: {', '.join(known)}.")
    return {name: each for name, each in known.items()
            if not only or name in only or name == "stock"}


def turns(names, runs):
    """Names in the order in which to run them; another one goes first in each
    run, so that none always has the warmer machine."""
    names = list(names)
    for i in range(runs):
        first = i % len(names)
        for name in names[first:] + names[:first]:
            print(f"run {i + 1} of {runs}, {name}:", end="", flush=True)
            yield name


def compile_program(name, *sources, flags=()):
    """Compiles bench/NAME.c and sources with the helpers of benches and tests;
    returns the program."""
    OUT.mkdir(parents=True, exist_ok=True)
    program = OUT / name
    command = ["cc", "-std=gnu11", "-O2", "-Wall", "-Wextra", "-pthread",
               f"-I{TEST}", f"-I{BUILD}/include", HERE / f"{name}.c", *sources,
               TEST / "util.c", "-o", program, *flags, "-lm"]
    try:
        subprocess.run(command, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        fail(f"{name}.c cannot be compiled: {error}")
    return program


@contextlib.contextmanager
def max_map_count(count):
    """Has vm.max_map_count at count for the time being; None leaves it."""
    path = Path("/proc/sys/vm/max_map_count")
    before = path.read_text()
    try:
        if count is not None:
            path.write_text(str(count))
        yield int(path.read_text())
    except PermissionError:
        fail(f"not permitted to write {path}; as root: "
             f"sysctl vm.max_map_count={count}")
    finally:
        if path.read_text() != before:
            path.write_text(before)


def watch(malloc, command, period=0.1):
    """Runs a program that reports its phases (report.h) on a malloc; samples its
    memory every period seconds.

    Returns the phases by name, with what the program reports and what was
    measured at the end of each, and the curve of its memory.  Memory is what the
    process has more than at its first phase, in MB.
    """
    cgroup = Cgroup()
    phases, sampler = {}, None
    try:
        process = subprocess.Popen(
            [str(word) for word in command], env=malloc.environment(), text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            preexec_fn=cgroup.enter)
        try:
            for line in process.stdout:
                phase = json.loads(line)
                name = phase.pop("phase")
                malloc.check(phase["library"])
                sampler = sampler or Sampler(process.pid, period)
                phases[name] = phase | sampler.take() | cgroup.figures() | {
                    "cpu_s": cpu_all(process.pid),
                    "mappings": mappings(process.pid)}
                print(f" {name} ..", end="", flush=True)
                process.stdin.write("\n")
                process.stdin.flush()
            if process.wait() or not phases:
                fail(f"{' '.join(process.args)} ends with status "
                     f"{process.returncode} on {malloc.path}.")
        finally:
            process.kill()
            process.wait()
    finally:
        cgroup.remove()
    base, *_, last = phases.values()
    curve = [(at - base["at"], (anon + store) / MB - base["memory"])
             for at, anon, store in sampler.samples
             if base["at"] <= at <= last["at"]]
    for key in ("at", "memory", "cgroup_pages", "cgroup_charged"):
        if key in base:
            first = base[key]
            for phase in phases.values():
                phase[key] -= first
    return phases, curve


# Memory and CPU time of a process.

def anonymous(pid):
    """RssAnon of a process, in bytes."""
    with open(f"/proc/{pid}/status") as status:
        anon = [int(line.split()[1]) << 10 for line in status
                if line.startswith("RssAnon:")]
    if not anon:
        raise ProcessLookupError(f"{pid} has ended")
    return anon[0]


def open_stores(pid):
    """Bytes of memory by inode of the stores that a process has open.

    They are found anew each time: a store appears with the first mesh, and every
    fork replaces it.  Two descriptors of one count once.
    """
    stores = {}
    for fd in os.listdir(f"/proc/{pid}/fd"):
        path = f"/proc/{pid}/fd/{fd}"
        try:
            if os.readlink(path).startswith(STORES):
                stat = os.stat(path)
                stores[stat.st_ino] = stat.st_blocks * 512
        except FileNotFoundError:
            continue  # closed since listdir
    return stores


def physical(pid):
    """(RssAnon, blocks of all stores) of a process, in bytes.

    Stores that forks have frozen are mapped, but not open any more.  Slow where
    there are many mappings, and not to be had by others than root.
    """
    stores = open_stores(pid)
    with open(f"/proc/{pid}/maps") as maps:
        for line in maps:
            addresses, _, _, _, inode, *path = line.split(maxsplit=5)
            if not path or int(inode) in stores or not path[0].startswith(STORES):
                continue
            # The names there have no leading zeros.
            name = "-".join(f"{int(end, 16):x}" for end in addresses.split("-"))
            try:
                stat = os.stat(f"/proc/{pid}/map_files/{name}")
            except FileNotFoundError:
                continue  # unmapped since
            stores[stat.st_ino] = stat.st_blocks * 512
    return anonymous(pid), sum(stores.values())


def mappings(pid):
    """Number of mappings; slow where there are many."""
    with open(f"/proc/{pid}/maps") as maps:
        return sum(1 for _ in maps)


def cpu_all(pid):
    """CPU seconds of all threads: the clock of clock_getcpuclockid(3)."""
    return time.clock_gettime((~pid << 3) | 2)


def cpu_main(pid):
    """CPU seconds of the main thread."""
    task = Path(f"/proc/{pid}/task/{pid}")
    try:
        return int((task / "schedstat").read_text().split()[0]) / 1e9
    except FileNotFoundError:  # a kernel without schedstat: clock ticks
        fields = (task / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Sampler(threading.Thread):
    """Takes the physical memory of a process that does not fork every period
    seconds until stopped."""

    def __init__(self, pid, period=0.1):
        super().__init__(daemon=True)
        self.pid, self.period = pid, period
        self.samples = []  # (time.monotonic(), RssAnon, store)
        self._end = threading.Event()
        self.take()
        self.start()

    def take(self):
        """Takes a sample; returns it, in MB."""
        anon, store = anonymous(self.pid), sum(open_stores(self.pid).values())
        at = time.monotonic()
        self.samples.append((at, anon, store))
        return {"at": at, "memory": (anon + store) / MB}

    def run(self):
        while not self._end.wait(self.period):
            try:
                self.take()
            except (FileNotFoundError, ProcessLookupError):
                return  # the process died; whoever talks to it reports that

    def stop(self):
        """Takes the last sample."""
        self._end.set()
        self.join()
        self.take()

    def figures(self):
        """Peak, mean and final physical memory in MB."""
        total = [(anon + store) / MB for _, anon, store in self.samples]
        return {"memory_peak": max(total),
                "memory_mean": statistics.fmean(total),
                "memory_final": total[-1]}


class Cgroup:
    """A memory cgroup (v1 or v2) of its own, or nothing where none can be made."""

    def __init__(self):
        self.path = None
        name = f"jemalloc-bench-{os.getpid()}"
        own = re.search(r"^0::(/.*)$", Path("/proc/self/cgroup").read_text(),
                        re.M)
        parents = [CGROUPS / "memory"]
        if own:
            path = CGROUPS / own[1].strip("/")
            # A v2 group with processes in it cannot hand its controllers
            # down, but one of those above it may.
            parents += [p for p in (path, *path.parents)
                        if p.is_relative_to(CGROUPS)]
        for parent in parents:
            try:
                (parent / name).mkdir()
            except OSError:
                continue
            if (parent / name / "memory.stat").exists():
                self.path = parent / name
                return
            (parent / name).rmdir()

    def enter(self):
        """Moves the calling process into the group."""
        if self.path:
            (self.path / "cgroup.procs").write_text("0")

    def figures(self):
        """MB of anonymous and shared memory, and of everything charged to the
        group (page tables, mappings and page cache too); {} without a group.
        """
        if not self.path:
            return {}
        stat = dict(line.split() for line in
                    (self.path / "memory.stat").read_text().splitlines())
        charged = next(self.path / name for name in
                       ("memory.current", "memory.usage_in_bytes")
                       if (self.path / name).exists())
        return {"cgroup_pages": (int(stat.get("anon") or stat["rss"])
                                 + int(stat["shmem"])) / MB,
                "cgroup_charged": int(charged.read_text()) / MB}

    def remove(self):
        """Removes the group; the processes in it must have ended."""
        if self.path:
            self.path.rmdir()


# Redis.

def redis_server():
    """The server; Debian's redis-tools has the same program under the name of
    one of its tools, and it goes by the name it is started with."""
    for name in (BUILD / "redis/redis-server", "redis-server",
                 "redis-check-rdb"):
        path = shutil.which(name)
        if path:
            return os.path.realpath(path)
    return fail("redis-server is missing; install Debian's redis-server or "
                "redis-tools.")


class Redis:
    """A redis-server on a malloc, and a connection to it.

    directory holds its socket and its log.  The server runs in the cgroup, if
    one is given.
    """

    def __init__(self, executable, malloc, directory, *options, cgroup=None):
        address = os.path.join(directory, "redis.sock")
        self.log = Path(directory) / "redis.log"
        self.address = address
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                ["redis-server", "--port", "0", "--unixsocket", address,
                 "--save", "", "--appendonly", "no", "--dir", str(directory),
                 *options],
                executable=executable, env=malloc.environment(),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                preexec_fn=cgroup.enter if cgroup else None)
        self.pid = self.process.pid
        try:
            self.socket = self._connect(address)
            self.replies = self.socket.makefile("rb")
            with open(f"/proc/{self.pid}/maps") as maps:
                loaded = {line.split()[-1] for line in maps
                          if "libjemalloc" in line or str(malloc.path) in line}
            if str(malloc.path) not in loaded or (
                    isinstance(malloc, LinkedMalloc) and len(loaded) > 1):
                fail(f"redis-server runs on {loaded or 'another malloc'} "
                     f"instead of {malloc.path}.")
        except BaseException:
            self.stop()
            raise

    def _connect(self, address):
        deadline = time.monotonic() + START_TIMEOUT_S
        while self.process.poll() is None and time.monotonic() < deadline:
            try:
                return connect(address)
            except OSError:  # not listening yet
                time.sleep(0.01)
        return fail("redis-server does not start; it says: "
                    + " ".join(self.log.read_text().splitlines()[-3:]))

    def command(self, *words):
        """One command; its reply as str, int or, for a null reply, None."""
        self.socket.sendall(resp(*(str(word).encode() for word in words)))
        line = self.replies.readline()
        kind, text = line[:1], line[1:].decode().strip()
        if kind == b"-" or not kind:
            fail(f"redis-server answers {words[0]} with: {text or 'its end'}")
        if kind == b":":
            return int(text)
        if kind == b"$":
            if text == "-1":
                return None
            return self.replies.read(int(text) + 2)[:-2].decode()
        return text

    def info(self, field):
        return re.search(rf"^{field}:(.*)$", self.command("INFO"),
                         re.M)[1].strip()

    def mesh_stats(self):
        """jemalloc's statistics of meshing, {} if it has none."""
        # Those of the process come before those of the arenas one by one.
        block = re.search(r"^ *Meshing:\n((?: +\w+: .*\n)+)",
                          self.command("MEMORY", "MALLOC-STATS"), re.M)
        pairs = re.findall(r"(\w+): (.*)", block[1]) if block else ()
        return {name: int(value) if value.isdigit() else value.strip('"')
                for name, value in pairs}

    def stop(self):
        self.process.kill()
        self.process.wait()


def connect(address):
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(address)
    except OSError:
        connection.close()
        raise
    return connection


def resp(*words):
    """A command as the bytes that Redis' protocol has for it."""
    return b"*%d\r\n" % len(words) + b"".join(
        b"$%d\r\n%b\r\n" % (len(word), word) for word in words)


def exchange(connection, request, expected):
    """Sends commands to a redis-server, which must reply what is expected;
    returns how long that took, in ns."""
    buffer = memoryview(bytearray(len(expected) + 1))
    start = time.perf_counter_ns()
    connection.sendall(request)
    got = 0
    while got < len(expected):
        n = connection.recv_into(buffer[got:])
        if n == 0:
            fail("redis-server ended.")
        got += n
    end = time.perf_counter_ns()
    if buffer[:got] != expected:
        fail("redis-server does not reply what it should: "
             f"{bytes(buffer[:got])[:200]!r}")
    return end - start


# Figures.

def medians(runs):
    """Medians of figures, key by key, over runs that all have the same keys;
    what is not a number is taken from the last run."""
    return {key: statistics.median(run[key] for run in runs)
            if isinstance(value, (int, float)) else value
            for key, value in runs[-1].items()}


def ratio(ones, others, key):
    """Median of the ratios within each run; None where one base is 0."""
    if not all(one.get(key) for one in ones):
        return None
    return statistics.median(other[key] / one[key]
                             for one, other in zip(ones, others))


def table(head, rows):
    """Prints rows of strings: the first column to the left, others right."""
    widths = [max(map(len, column)) for column in zip(head, *rows)]
    for row in (head, ["-" * width for width in widths], *rows):
        print("  ".join(cell.rjust(width) if i else cell.ljust(width)
                        for i, (cell, width) in enumerate(zip(row, widths)))
              .rstrip())


def compare(figures, rows):
    """Prints medians of the figures of stock and mesh and the ratios, row by row
    of (key, label, format); returns both.  figures has a list of runs for each.
    """
    middle = {name: medians(runs) for name, runs in figures.items()}
    ratios = {key: ratio(figures["stock"], figures["mesh"], key)
              for key, value in middle["stock"].items()
              if isinstance(value, (int, float))}

    def cell(name, key, form):
        return form.format(middle[name][key]) if key in middle[name] else "-"

    print()
    table(("median of %d" % len(figures["stock"]), "stock", "mesh", "ratio"),
          [(label, cell("stock", key, form), cell("mesh", key, form),
            f"{ratios[key]:.3f}" if ratios.get(key) else "-")
           for key, label, form in rows
           if any(key in one for one in middle.values())])
    print()
    off = middle["mesh"].get("mesh_off", "this jemalloc is built without it")
    if off:
        print(f"meshing was off: {off}")
    return middle, ratios


def mean_over_time(curve, begin):
    """Mean of a curve of (seconds, value) since begin, however it was sampled."""
    curve = [point for point in curve if point[0] >= begin]
    area = sum((t - before) * (value + last) / 2
               for (before, last), (t, value) in zip(curve, curve[1:]))
    return area / (curve[-1][0] - curve[0][0])


def against_stock(figures):
    """Medians of the figures and of their ratios to stock's within each run, both
    by variant; figures has a list of runs for each."""
    medians_of = {name: medians(runs) for name, runs in figures.items()}
    ratios = {name: {key: ratio(figures["stock"], runs, key)
                     for key, value in medians_of[name].items()
                     if isinstance(value, (int, float))
                     and key in figures["stock"][0]}
              for name, runs in figures.items()}
    return {"medians": medians_of, "ratios": ratios, "runs": figures}


def variant_table(title, result, columns):
    """Prints the result of against_stock(), one line a variant: columns are (key,
    heading, format, whether the ratio stands beside it)."""
    head, rows = [title], []
    for _, heading, _, with_ratio in columns:
        head += [heading] + ["ratio"] * with_ratio
    for name, middle in result["medians"].items():
        row = [name]
        for key, _, form, with_ratio in columns:
            row.append(form.format(middle[key]) if key in middle else "-")
            if with_ratio:
                quotient = result["ratios"][name].get(key)
                row.append(f"{quotient:.3f}" if quotient else "-")
        rows.append(row)
    print()
    table(head, rows)
    for name, middle in result["medians"].items():
        if name != "mesh off" and middle.get("mesh_off"):
            print(f"{name} was off: {middle['mesh_off']}")
    print(flush=True)


def draw(path, title, curves, marks=None, marked=""):
    """Memory in MB over seconds, one line a run: curves has by name a list of
    runs of (seconds, MB), marks likewise the times to put dots at."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot

    path.parent.mkdir(parents=True, exist_ok=True)
    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for name, runs in curves.items():
        colour = COLOURS.get(name, "tab:gray")
        for i, curve in enumerate(runs):
            times, memory = zip(*curve)
            axes.plot(times, memory, color=colour, linewidth=1.2, alpha=0.8,
                      label=None if i else name)
            if marks:
                dots = [min(range(len(times)),
                            key=lambda j: abs(times[j] - mark))
                        for mark in marks[name][i]]
                axes.plot([times[j] for j in dots], [memory[j] for j in dots],
                          "o", color=colour, markersize=4)
    if marks:
        axes.plot([], [], "o", color="grey", markersize=4, label=marked)
    axes.set(xlabel="seconds", ylabel="physical memory (MB)", title=title,
             xlim=0, ylim=0)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def save(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=1) + "\n")
