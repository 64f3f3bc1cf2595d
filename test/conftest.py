"""What the tests share: the built libraries, the test programs and running them."""

import json
import os
import resource
import signal
import subprocess
import time
from pathlib import Path

import pytest

TEST = Path(__file__).resolve().parent
BUILD = TEST.parent / "build"
LIBS = {
    "release": BUILD / "lib",
    "debug": BUILD / "debug" / "lib",
    "stock": BUILD / "stock" / "lib",
    # Functions with the prefix je_, beside the C library's; and other options.
    "prefix": BUILD / "prefix" / "lib",
}
PREFIX = ["-D_GNU_SOURCE=", "-DJEMALLOC_MANGLE", "-include",
          BUILD / "prefix" / "include" / "jemalloc" / "jemalloc.h"]
# The ways to get at jemalloc's functions.
LINKS = {
    "shared": ["-L", LIBS["release"], "-Wl,--no-as-needed", "-ljemalloc"],
    "archive": [LIBS["release"] / "libjemalloc.a"],
    "static": ["-static", LIBS["release"] / "libjemalloc.a"],
    "prefix": [*PREFIX, "-L", LIBS["prefix"], "-ljemalloc"],
    "dlopen": [*PREFIX, TEST / "dlopened.c"],
}
HELPERS = ("places", "scenario", "objects", "measure", "util")


def without_core_files():
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def kernel_stacks(group):
    """Where the threads of a process group that hangs wait in the kernel."""
    stacks = []
    for stat in Path("/proc").glob("[0-9]*/task/*/stat"):
        try:
            if int(stat.read_text().rpartition(")")[2].split()[2]) == group:
                stacks.append(f"{stat} {(stat.parent / 'comm').read_text()}"
                              f"{(stat.parent / 'stack').read_text()}")
        except OSError as error:
            stacks.append(f"{error}\n")
    return "".join(stacks)


class Run:
    """A program that has ended."""

    def __init__(self, command, returncode, stdout, stderr):
        self.command, self.returncode = command, returncode
        self.stdout, self.stderr = stdout, stderr

    def __repr__(self):
        return (f"{self.command} ended with {self.returncode}\n"
                f"{self.stdout}\n{self.stderr}")

    @property
    def json(self):
        """What the program printed; None if it did not come so far."""
        return json.loads(self.stdout) if self.stdout else None


class Program:
    """A compiled test program."""

    def __init__(self, path):
        self.path = path

    def run(self, *args, lib="release", conf="", timeout=400, before=(), at=None,
            libs=LIBS):
        """Runs the program with one of the libraries and MALLOC_CONF=conf.

        before is a command that runs the program; one that hangs fails the test.
        """
        command = [*map(str, before), str(at or self.path), *map(str, args)]
        env = dict(os.environ, LD_LIBRARY_PATH=str(libs[lib]), MALLOC_CONF=conf,
                   JE_MALLOC_CONF=conf)
        process = subprocess.Popen(
            command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, start_new_session=True,
            preexec_fn=without_core_files)
        try:
            stdout, stderr = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            stacks = kernel_stacks(process.pid)
            os.killpg(process.pid, signal.SIGKILL)
            stdout, stderr = process.communicate()
            pytest.fail(f"no end after {timeout} s: {command} MALLOC_CONF={conf}\n"
                        f"{stdout}\n{stderr}\n{stacks}")
        return Run(command, process.returncode, stdout, stderr)


@pytest.fixture(scope="session")
def preload(tmp_path_factory):
    """A function that compiles a library to preload, once.

    It returns a command for Program.run(before=...), which may be followed by
    assignments to variables of the environment.
    """
    compiled = {}

    def compile_once(name):
        if name not in compiled:
            path = tmp_path_factory.mktemp("libraries") / f"{name}.so"
            subprocess.run(
                ["gcc", "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared",
                 TEST / f"{name}.c", TEST / "util.c", "-o", path, "-lm"], check=True)
            compiled[name] = ["env", f"LD_PRELOAD={path}"]
        return compiled[name]

    return compile_once


@pytest.fixture(scope="session")
def program(tmp_path_factory):
    """A function that compiles one of the test programs, once."""
    compiled = {}

    def compile_once(name, link="shared"):
        if (name, link) not in compiled:
            path = tmp_path_factory.mktemp("programs") / name
            sources = [TEST / f"{each}.c" for each in (name, *HELPERS)]
            warn = ["-O2", "-g", "-Wall", "-Wextra", "-Werror", "-pthread", "-I",
                    BUILD / "include"]
            if not sources[0].exists():
                sources[0] = f"{path}.o"
                subprocess.run(["g++", "-std=c++20", *warn, "-c", TEST / f"{name}.cc",
                                "-o", sources[0]], check=True)
                sources.append("-lstdc++")
            subprocess.run(
                ["gcc", *warn, *sources, "-o", path, *LINKS[link], "-lm"], check=True)
            compiled[name, link] = Program(path)
        return compiled[name, link]

    return compile_once


class Cgroup:
    """A memory cgroup: its directory, its usage file, a command that enters it."""

    def __init__(self, path, usage):
        self.path, self.usage = path, path / usage
        self.enter = ["sh", "-c", f'echo $$ > "{path}/cgroup.procs" && exec "$@"',
                      "sh"]


@pytest.fixture
def cgroup():
    """A memory cgroup of the test's own."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "memory":
            root, usage = "/sys/fs/cgroup/memory", "memory.usage_in_bytes"
        elif controllers == "":
            root, usage = "/sys/fs/cgroup", "memory.current"
        else:
            continue
        group = Cgroup(Path(root + path) / f"mesh-test-{os.getpid()}", usage)
        try:
            group.path.mkdir()
        except OSError:
            continue
        if group.usage.exists():
            yield group
            group.path.rmdir()
            return
        group.path.rmdir()
    pytest.skip("no memory cgroup can be made here")


def pytest_collection_modifyitems(items):
    """What takes longest comes last, in case that there is not enough time."""
    items.sort(key=lambda item: item.path.name in (
        "test_faults.py", "test_fork.py", "test_jemalloc_suite.py",
        "test_server_suites.py"))


def pytest_runtest_setup():
    """Where time is limited, as in CI, a slow machine leaves the last tests out and
    says so; MESH_CHECK_UNTIL is in seconds since 1970."""
    if time.time() > float(os.environ.get("MESH_CHECK_UNTIL", "inf")):
        pytest.skip("no time was left for it (MESH_CHECK_UNTIL)")
