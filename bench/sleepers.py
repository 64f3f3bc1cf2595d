#!/usr/bin/python3
"""What meshing costs a program of which many threads sleep on shared futexes, as
libstdc++'s do, compared with the same program asleep on private ones.
"""

import argparse
import json
import subprocess

import common

KINDS = ("private", "shared")
GOAL_RATIO = 1.1


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5,
                        help="runs of each kind (default %(default)s)")
    parser.add_argument("--threads", type=int, default=1000,
                        help="that sleep (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=20,
                        help="of allocation and a pass (default %(default)s)")
    parser.add_argument("--mesh-lib", default=common.BUILD / "lib",
                        help="directory of the libjemalloc.so.2 that meshes")
    parser.add_argument("--mesh-conf", default="mesh:true,mesh_period_ms:-1,narenas:1",
                        help="MALLOC_CONF (default %(default)s)")
    args = parser.parse_args()
    malloc = common.Malloc(common.library(args.mesh_lib), args.mesh_conf)
    program = common.compile_program(
        "sleepers", common.TEST / "measure.c", common.TEST / "objects.c")
    runs = {kind: [] for kind in KINDS}
    for kind in common.turns(KINDS, args.runs):
        out = subprocess.run([program, str(args.threads), kind, str(args.rounds)],
                             env=malloc.environment(), stdout=subprocess.PIPE,
                             text=True, check=True).stdout
        runs[kind].append(json.loads(out))
        print(" " + out, end="", flush=True)
    print()
    middle = {kind: common.medians(each) for kind, each in runs.items()}
    common.table(("median of %d" % args.runs, *KINDS, "ratio"), [
        (label, *(form.format(middle[kind][key]) for kind in KINDS),
         f"{common.ratio(runs['private'], runs['shared'], key):.3f}")
        for key, label, form in (
            ("mesh_s", "time of meshing (s)", "{:.3f}"),
            ("cpu_s", "CPU of the program (s)", "{:.3f}"),
            ("nmeshes", "slabs meshed", "{:,.0f}"),
            ("meshed", "sleepers' objects meshed", "{:,.0f}"),
            ("woken", "threads woken", "{:,.0f}"))])
    quotient = common.ratio(runs["private"], runs["shared"], "mesh_s")
    print(f"{'as' if quotient <= GOAL_RATIO else 'NOT as'} wanted: at most "
          f"{GOAL_RATIO} times the time of meshing")
    path = common.OUT / "sleepers.json"
    common.save(path, {"medians": middle, "runs": runs})
    print(f"all figures: {path}")


if __name__ == "__main__":
    main()
