#!/usr/bin/python3
"""What meshing saves and what operations cost by the number of arenas, in a heap that
many threads share: each frees what others allocated.
"""

import argparse

import common
from common import MB

COLUMNS = (  # key, heading, format, with ratio to stock
    ("memory", "memory MB", "{:,.1f}", True),
    ("memory_freed", "just freed", "{:,.1f}", True),
    ("rate", "10^6 replaced/s", "{:,.2f}", True),
    ("cpu_s", "CPU s", "{:.2f}", True),
    ("nmeshes", "slabs meshed", "{:,.0f}", False),
)


def figures(phases):
    result = dict(phases["idled"])
    result["memory_freed"] = phases["freed"]["memory"]
    result["rate"] = phases["replaced"]["rate"] / 1e6
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    common.add_arguments(parser, runs=3)
    parser.add_argument("--threads", type=int, nargs="+", default=[8, 64],
                        help="(default %(default)s)")
    parser.add_argument("--arenas", type=int, nargs="+", default=[1, 2, 4, 8],
                        help="besides the default (default %(default)s)")
    parser.add_argument("--mb", type=int, default=512,
                        help="of objects (default %(default)s)")
    parser.add_argument("--size", type=lambda text: 0 if text == "mix" else int(text),
                        default=256, help="of the objects, or mix: 8 bytes to 14 KiB "
                        "(default %(default)s)")
    parser.add_argument("--freed", type=int, default=80,
                        help="per cent of them (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3,
                        help="in which they are replaced (default %(default)s)")
    parser.add_argument("--seconds", type=int, default=20,
                        help="to idle (default %(default)s)")
    args = parser.parse_args()
    stock, mesh = common.library(args.stock_lib), common.library(args.mesh_lib)
    mallocs = {"stock": common.Malloc(stock, "background_thread:true"),
               "mesh": common.Malloc(mesh, args.mesh_conf)}
    for n in args.arenas:
        mallocs[f"stock, {n}"] = common.Malloc(
            stock, f"background_thread:true,narenas:{n}")
        mallocs[f"mesh, {n}"] = common.Malloc(
            mesh, f"{args.mesh_conf},narenas:{n}")
    program = common.compile_program("arenas", common.HERE / "report.c",
                                     common.TEST / "measure.c")
    results = {}
    for threads in args.threads:
        runs = {name: [] for name in mallocs}
        for name in common.turns(mallocs, args.runs):
            phases, _ = common.watch(
                mallocs[name], [program, threads, args.mb * MB, args.size,
                                args.freed, args.rounds, args.seconds], period=0.5)
            runs[name].append(figures(phases))
            print(f" {runs[name][-1]['memory']:,.1f} MB", flush=True)
        results[threads] = common.against_stock(runs)
        common.variant_table(f"{threads} threads", results[threads], COLUMNS)
    path = common.OUT / "arenas.json"
    common.save(path, results)
    print(f"all figures: {path}")


if __name__ == "__main__":
    main()
