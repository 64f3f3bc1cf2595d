#!/usr/bin/python3
"""Forks of a fragmented and meshed heap against those of the stock twin's after the
same allocations and frees: time of fork(), handlers and all, the longest write of
the parent afterwards, and the memory that both take as the parent writes.
"""

import argparse
import json
import subprocess
from pathlib import Path

import common

HERE = Path(__file__).resolve().parent
TEST = HERE.parent / "test"
PROGRAM = common.BUILD / "bench/fork"
ROWS = (  # key, label, format
    ("fork_ms", "first fork() (ms)", "{:.1f}"),
    ("child_ms", "until the child's code runs (ms)", "{:.1f}"),
    ("written_ms", "fork(), all written since (ms)", "{:.1f}"),
    ("last_ms", "fork(), nothing written since (ms)", "{:.1f}"),
    ("longest_write_ms", "longest write of the parent (ms)", "{:.2f}"),
    ("writing_ms", "all writes (ms)", "{:.0f}"),
    ("used_mb", "memory before (MB)", "{:.1f}"),
    ("grown_mb", "growth by all writes (MB)", "{:.1f}"),
    ("followers", "meshed slabs", "{:,.0f}"),
    ("mappings", "mappings", "{:,.0f}"),
)


def compile_program():
    PROGRAM.parent.mkdir(exist_ok=True)
    subprocess.run(
        ["gcc", "-O2", "-Wall", "-Wextra", "-pthread", f"-I{TEST}",
         f"-I{common.BUILD}/include", HERE / "fork.c", TEST / "measure.c",
         TEST / "util.c", "-o", PROGRAM, f"-L{common.BUILD}/lib",
         "-ljemalloc", "-lm"], check=True)


def run(libdir, args, conf):
    cgroup = common.Cgroup()
    try:
        usage = []
        if cgroup.path:
            usage = ["-u", next(cgroup.path / name for name in (
                "memory.current", "memory.usage_in_bytes")
                if (cgroup.path / name).exists())]
        end = subprocess.run(
            [PROGRAM, *args, *usage], capture_output=True, text=True,
            preexec_fn=cgroup.enter, env=common.environment(
                LD_LIBRARY_PATH=str(common.library(libdir).parent),
                MALLOC_CONF=conf))
    finally:
        cgroup.remove()
    if end.returncode:
        common.fail(f"the program ends with status {end.returncode} on "
                    f"{libdir}: {end.stderr}")
    return json.loads(end.stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mb", type=int, default=1024, help="size of the heap")
    parser.add_argument("--size", type=int, default=256, help="of objects")
    parser.add_argument("--live", type=int, default=20, help="per cent kept")
    parser.add_argument("--followers", type=int, default=20000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--conf", default="mesh:true,mesh_period_ms:-1")
    parser.add_argument("--barrier", default="auto", metavar="NAME")
    options = parser.parse_args()
    conf = f"{options.conf},mesh_barrier:{options.barrier}"
    compile_program()
    args = ["-b", str(options.mb), "-z", str(options.size),
            "-l", str(options.live), "-f", str(options.followers), "-w"]
    stock, mesh = [], []
    for _ in range(options.runs):
        stock.append(run(common.BUILD / "stock/lib", args, ""))
        mesh.append(run(common.BUILD / "lib", args, conf))
    middle = common.medians(stock), common.medians(mesh)
    rows = []
    for key, label, form in ROWS:
        quotient = common.ratio(stock, mesh, key)
        rows.append((label, *(form.format(each[key]) for each in middle),
                     "" if quotient is None else f"{quotient:.2f}"))
    print(f"{options.mb} MB of {options.size} bytes, {options.live} % kept, "
          f"median of {options.runs}\n")
    common.table(("", "stock", "mesh", "ratio"), rows)
    common.save(PROGRAM.with_suffix(".json"), {"stock": stock, "mesh": mesh})


if __name__ == "__main__":
    main()
