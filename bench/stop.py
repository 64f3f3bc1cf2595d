#!/usr/bin/python3
"""How long threads stand still, and what that costs, while a heap is meshed by
mesh_barrier:signal, by the number of threads.
"""

import argparse

import common

COLUMNS = (  # key, heading, format
    ("stops", "stops", "{:,.0f}"),
    ("half_us", "half of them (us)", "{:,.0f}"),
    ("longest_us", "longest (us)", "{:,.0f}"),
    ("share", "share of a core", "{:.3f}"),
    ("nmeshes", "slabs meshed", "{:,.0f}"),
)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mesh-lib", default=common.BUILD / "lib",
                        help="directory of the libjemalloc.so.2 that meshes")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 10, 100, 1000],
                        help="beside the first (default %(default)s)")
    parser.add_argument("--seconds", type=int, default=10,
                        help="to measure (default %(default)s)")
    args = parser.parse_args()
    malloc = common.Malloc(common.library(args.mesh_lib),
                           "mesh:true,mesh_barrier:signal")
    program = common.compile_program("stop", common.HERE / "report.c",
                                     common.TEST / "measure.c")
    result = {}
    print("threads", *(heading for _, heading, _ in COLUMNS), sep=" | ")
    for threads in args.threads:
        phases, _ = common.watch(malloc, [program, threads, args.seconds],
                                 period=args.seconds + 3600)
        result[threads] = phases["measured"]
        print(threads, *(form.format(result[threads][key])
                         for key, _, form in COLUMNS), sep=" | ", flush=True)
    path = common.OUT / "stop.json"
    common.save(path, result)
    print(f"all figures: {path}")


if __name__ == "__main__":
    main()
