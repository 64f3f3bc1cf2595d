"""Compilers, analysers and sanitizers have nothing to say about our code.

jemalloc's own files are looked at by UndefinedBehaviorSanitizer only.
"""

import functools
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

from conftest import BUILD, HELPERS, TEST, Program

ROOT = TEST.parent
# Configured and built by then, with jemalloc's assertions, which tell analysers
# what may be taken for granted.
TREE = BUILD / "tree" / "debug" / "jemalloc"
SOURCES = sorted((TREE / "src").glob("mesh*.c"))
PROGRAMS = sorted([*TEST.glob("*.c"), *(ROOT / "bench").glob("*.c")])
WARN = ["-std=gnu11", "-Wall", "-Wextra", "-Werror"]
IN_TREE = ["-D_GNU_SOURCE", "-D_REENTRANT", "-I", TREE / "include"]
# The tree was configured for gcc, which has a format attribute that clang lacks.
CLANG = ["clang", "-Wno-ignored-attributes"]


def assert_silent(*commands):
    """None of the commands says anything or fails."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        runs = list(pool.map(lambda command: subprocess.run(
            list(map(str, command)), cwd=ROOT, capture_output=True, text=True,
            check=False), commands))
    said = [run.stdout + run.stderr for run in runs
            if run.returncode != 0 or run.stdout or run.stderr]
    assert runs and not said, "\n".join(said)


@pytest.mark.parametrize("compiler", [["gcc"], CLANG], ids=["gcc", "clang"])
def test_no_warnings(compiler):
    assert_silent(*(
        [*compiler, *WARN, "-O1", *IN_TREE, "-c", source, "-o", "/dev/null"]
        for source in SOURCES))
    assert_silent(*(
        [*compiler, *WARN, "-O1", "-I", BUILD / "include", "-I", TEST, "-c", source,
         "-o", "/dev/null"] for source in PROGRAMS))


def test_clang_analyzer():
    """Each path of each function is followed.

    What it says of uninitialized memory is off: it does not see that a bitmap has at
    least one word and as many bits set as the slab says.
    """
    assert_silent(*(
        [*CLANG, "--analyze", "-Xclang", "-analyzer-werror", "-Xclang",
         "-analyzer-output=text", "-Xclang",
         "-analyzer-disable-checker=core.uninitialized,"
         "core.UndefinedBinaryOperatorResult,core.CallAndMessage", "-std=gnu11",
         *IN_TREE, source] for source in SOURCES))


def test_cppcheck():
    """Without the headers, which take it hours; "style" is not jemalloc's."""
    assert_silent(["cppcheck", "--enable=warning,portability,performance", "-q",
                   "--std=c11", "--max-configs=1", "--error-exitcode=1",
                   *(f"-D{name}" for name in (
                       "_GNU_SOURCE", "__linux__", "__x86_64__", "__LP64__",
                       "__GNUC__=12")),
                   *sorted((ROOT / "src").glob("*.c")), *PROGRAMS])


@pytest.mark.parametrize("compiler", [["gcc"], CLANG], ids=["gcc", "clang"])
def test_searches_sanitized(compiler, tmp_path):
    """AddressSanitizer and UndefinedBehaviorSanitizer watch the two searches."""
    program = tmp_path / "sanitized"
    assert_silent([
        *compiler, *WARN, "-O1", "-g", "-fsanitize=address,undefined",
        "-fno-sanitize-recover=all", "-I", TEST,
        TEST / "sanitized.c", ROOT / "src/mesh_match.c", ROOT / "src/mesh_run.c",
        TEST / "util.c", "-o", program, "-lm"])
    run = subprocess.run([program], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (0, "well\n"), run


def sanitized(name, program, flags, *options, program_flags=()):
    """A test program linked with a jemalloc that was compiled with flags."""
    tree = BUILD / "tree" / name
    log = (BUILD / "log" / f"{name}.log").open("a")

    def run(*command, cwd=tree):
        subprocess.run(list(map(str, command)), cwd=cwd, stdout=log, stderr=log,
                       check=True)

    run(ROOT / "scripts" / "make-tree", tree, cwd=ROOT)
    if not (tree / "Makefile").exists():
        run("./configure", "--enable-mesh", "--disable-doc", "--disable-cxx", "CC=gcc",
            "CFLAGS=" + " ".join(flags), *options,
            "--with-version=5.3.1-0-g81034ce1f1373e37dc865038e1bc8eeecf559ce8")
    run("make", f"-j{os.cpu_count()}", "lib/libjemalloc.a")
    run("gcc", "-O1", "-g", "-pthread", *program_flags, "-I", tree / "include", "-I",
        TEST, *(TEST / f"{each}.c" for each in (program, *HELPERS)),
        tree / "lib/libjemalloc.a", "-o", tree / program, "-lm", "-ldl")
    return Program(tree / program)


@functools.cache
def trapping(program):
    """A test program and a jemalloc that ends it at undefined behaviour."""
    traps = sanitized("ubsan", program, [
        "-fsanitize=undefined", "-fsanitize-undefined-trap-on-error", "-O2", "-g"])
    code = subprocess.run(["objdump", "-d", "--no-show-raw-insn", traps.path],
                          capture_output=True, text=True, check=True).stdout
    assert code.count("ud2") > 1000
    return traps


@pytest.mark.parametrize("program, args", [
    ("torture", ("-s", 10, "-t", 4, "-yklp")), ("views", ("-g",))])
@pytest.mark.parametrize("barrier", ["auto", "signal"])
def test_no_undefined_behaviour(program, args, barrier):
    """Where it came to that, or to an overflow, the library would end by SIGILL."""
    run = trapping(program).run(*args, timeout=300, conf="abort_conf:true,mesh:true,"
                    f"mesh_period_ms:0,narenas:2,mesh_barrier:{barrier}")
    assert run.returncode == 0 and run.json["bad"] == 0, run
    assert run.json["mesh"]["nmeshes"] > 1000, run


@pytest.fixture(scope="module")
def racer():
    """torture.c and a jemalloc of the prefix je_, with ThreadSanitizer.

    So malloc stays the sanitizer's own.
    """
    flags = ["-fsanitize=thread", "-O1", "-g"]
    header = BUILD / "tree" / "tsan" / "include/jemalloc/jemalloc.h"
    return sanitized("tsan", "torture", flags, "--with-jemalloc-prefix=je_",
                     program_flags=[
                         *flags, "-D_GNU_SOURCE=", "-DJEMALLOC_MANGLE", "-include",
                         "stdlib.h", "-include", "malloc.h", "-include", header])


def test_no_data_races(racer):
    """Threads free, allocate and mesh, by ticks and by arena.4096.mesh.

    Not background threads: jemalloc makes those past the sanitizer.  A report of
    which it has forgotten one side is none: tsan.supp is about either side.
    """
    run = racer.run(
        "-s", 10, "-t", 3, "-b", 4, "-ylp", timeout=300, before=[
            "env", f"TSAN_OPTIONS=history_size=7:suppressions={TEST / 'tsan.supp'}",
            "JE_MALLOC_CONF=mesh:true,mesh_period_ms:0,background_thread:false",
            # The sanitizer knows the layout without randomization only.
            "setarch", "-R"])
    reports = [report for report in run.stderr.split("=" * 18)
               if "WARNING: " in report and "failed to restore" not in report]
    assert run.returncode in (0, 66) and not reports, "".join(reports)
    assert run.json["bad"] + run.json["efault"] + run.json["short"] == 0, run
    assert run.json["mesh"]["nmeshes"] > 1000, run
