"""What the tests share: the built libraries, the test programs and running them."""

import json
import os
import resource
import signal
import subprocess
from pathlib import Path

import pytest

TEST = Path(__file__).resolve().parent
BUILD = TEST.parent / "build"
LIBS = {
    "release": BUILD / "lib",
    "debug": BUILD / "debug" / "lib",
    "stock": BUILD / "stock" / "lib",
}


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

    def run(self, *args, lib="release", conf="", timeout=120, before=(), at=None,
            libs=LIBS):
        """Runs the program with one of the libraries and MALLOC_CONF=conf.

        before is a command that runs the program; one that hangs fails the test.
        """
        command = [*map(str, before), str(at or self.path), *map(str, args)]
        env = dict(os.environ, LD_LIBRARY_PATH=str(libs[lib]), MALLOC_CONF=conf)
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
def program(tmp_path_factory):
    """A function that compiles one of the test programs, once."""
    compiled = {}

    def compile_once(name):
        if name not in compiled:
            path = tmp_path_factory.mktemp("programs") / name
            sources = [TEST / f"{each}.c"
                       for each in (name, "objects", "measure", "util")]
            subprocess.run(
                ["gcc", "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-pthread",
                 "-I", BUILD / "include", *sources, "-o", path,
                 "-L", LIBS["release"], "-Wl,--no-as-needed", "-ljemalloc", "-lm"],
                check=True)
            compiled[name] = Program(path)
        return compiled[name]

    return compile_once
