#!/usr/bin/python3
"""Servers that load their application and then fork workers which share its memory,
as Debian has them: what all processes of one need together, on stock jemalloc and
on jemalloc with meshing.

The application fills a table and thins it; its requests then replace some of it.
"""

import argparse
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import common

START_TIMEOUT_S = 30
SAMPLE_S = 0.1
GOAL = 1.03

COLUMNS = (  # key, heading, format, with ratio to stock
    ("begin", "begin MB", "{:,.1f}", True),
    ("mean", "mean MB", "{:,.1f}", True),
    ("loaded", "loaded MB", "{:,.1f}", True),
    ("final", "final MB", "{:,.1f}", True),
    ("peak", "peak MB", "{:,.1f}", True),
    ("charged", "charged MB", "{:,.1f}", True),
    ("cpu_s", "CPU s", "{:.2f}", True),
    ("nthreads", "threads", "{:,.0f}", False),
)


def commands(workers, address, directory):
    """The command line of each server."""
    conf = Path(directory) / "unicorn.rb"
    conf.write_text(f"worker_processes {workers}\npreload_app true\n")
    rack = common.HERE / "prefork.ru"
    return {
        "puma": ["puma", "--quiet", "--preload", "-w", workers, "-t", "1:1",
                 "-b", f"unix://{address}", rack],
        "unicorn": ["unicorn", "-c", conf, "-l", address, rack],
        "gunicorn": ["gunicorn", "--preload", "--workers", workers,
                     "--log-level", "error", "--chdir", common.HERE,
                     "--bind", f"unix:{address}", "prefork_wsgi"]}


class Watch(threading.Thread):
    """Samples the memory of a cgroup until it is stopped."""

    def __init__(self, cgroup):
        super().__init__(daemon=True)
        self.cgroup, self.samples = cgroup, []
        self._end = threading.Event()
        self.start()

    def take(self):
        figures = self.cgroup.figures()
        self.samples.append((time.monotonic(), figures["cgroup_pages"]))
        return figures

    def run(self):
        while not self._end.wait(SAMPLE_S):
            self.take()

    def stop(self):
        self._end.set()
        self.join()


def request(address, path):
    """One request, of a connection of its own; returns which process answers."""
    with common.connect(str(address)) as connection:
        connection.sendall(b"GET %b HTTP/1.0\r\nHost: localhost\r\n\r\n" % path)
        reply = b""
        while data := connection.recv(4096):
            reply += data
    head, _, body = reply.partition(b"\r\n\r\n")
    if b" 200 " not in head.partition(b"\r\n")[0]:
        common.fail(f"the server answers: {reply[:200]!r}")
    return int(body)


def await_workers(process, address, workers, log):
    """Waits until each worker has answered."""
    seen, deadline = set(), time.monotonic() + START_TIMEOUT_S
    while len(seen) < workers:
        if process.poll() is not None or time.monotonic() > deadline:
            common.fail("the server does not start; it says: "
                        + " ".join(log.read_text().splitlines()[-3:]))
        try:
            seen.add(request(address, b"/"))
        except OSError:
            time.sleep(0.1)


def load(args, address):
    """Requests at a constant rate, so that all servers do the same work."""
    begin = time.monotonic()
    for i in range(args.rate * args.seconds):
        request(address, b"/work")
        time.sleep(max(0, begin + i / args.rate - time.monotonic()))


def measure(args, malloc, process, cgroup, address, log):
    await_workers(process, address, args.workers, log)
    pids = [int(pid) for pid in (cgroup.path / "cgroup.procs").read_text().split()]
    for pid in pids:
        if str(malloc.path) not in Path(f"/proc/{pid}/maps").read_text():
            common.fail(f"process {pid} of the server is not on {malloc.path}.")
    watch = Watch(cgroup)
    time.sleep(args.idle)
    begin = watch.take()["cgroup_pages"]
    load(args, address)
    loaded = watch.take()["cgroup_pages"]
    time.sleep(args.idle)
    last = watch.take()
    watch.stop()
    return {"begin": begin, "loaded": loaded, "final": last["cgroup_pages"],
            "mean": common.mean_over_time(watch.samples, watch.samples[0][0]),
            "peak": max(memory for _, memory in watch.samples),
            "charged": last["cgroup_charged"],
            "cpu_s": sum(common.cpu_all(pid) for pid in pids),
            "nthreads": sum(len(list(Path(f"/proc/{pid}/task").iterdir()))
                            for pid in pids)}, watch.samples


def run(args, malloc, name, directory):
    """One server on one malloc; returns its figures and the curve of its memory."""
    address, log = Path(directory) / "socket", Path(directory) / "log"
    address.unlink(missing_ok=True)
    cgroup = common.Cgroup()
    if not cgroup.path:
        common.fail("what several processes share is counted by a memory cgroup "
                    "only, and none can be made; try as root.")
    try:
        command = commands(args.workers, address, directory)[name]
        with open(log, "w") as output:
            process = subprocess.Popen(
                [str(word) for word in command], env=malloc.environment(),
                stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                preexec_fn=cgroup.enter)
        try:
            figures, samples = measure(
                args, malloc, process, cgroup, address, log)
        finally:
            process.terminate()
            process.wait()
    finally:
        cgroup.remove()
    print(f" {figures['final']:.1f} MB", flush=True)
    begin = samples[0][0]
    return figures, [(at - begin, memory) for at, memory in samples]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    common.add_arguments(parser, runs=3)
    parser.add_argument("--server", nargs="+",
                        choices=("puma", "unicorn", "gunicorn"),
                        default=["puma", "unicorn", "gunicorn"],
                        help="default all")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--rate", type=int, default=200,
                        help="requests a second (default %(default)s)")
    parser.add_argument("--seconds", type=int, default=20,
                        help="of load (default %(default)s)")
    parser.add_argument("--idle", type=float, default=5, metavar="SECONDS",
                        help="before and after it (default %(default)s)")
    args = parser.parse_args()
    mallocs = {"stock": common.Malloc(common.library(args.stock_lib)),
               "mesh": common.Malloc(common.library(args.mesh_lib),
                                     args.mesh_conf)}
    results, worst = {}, 0
    for server in args.server:
        title = f"{server}, {args.workers} workers"
        print(title, flush=True)
        runs = {name: [] for name in mallocs}
        curves = {name: [] for name in mallocs}
        with tempfile.TemporaryDirectory() as directory:
            for name in common.turns(mallocs, args.runs):
                figures, curve = run(args, mallocs[name], server, directory)
                runs[name].append(figures)
                curves[name].append(curve)
        result = common.against_stock(runs)
        common.variant_table(title, result, COLUMNS)
        worst = max(worst, *(result["ratios"]["mesh"][key]
                             for key in ("begin", "mean", "loaded", "final")))
        image = common.OUT / f"prefork-{server}.png"
        common.draw(image, title, curves)
        print(f"memory over time: {image}\n", flush=True)
        results[server] = {"curves": curves, **result}
    print(f"most memory, mesh / stock: {worst:.3f} (wanted: at most {GOAL})")
    path = common.OUT / "prefork.json"
    common.save(path, results)
    print(f"all figures: {path}")


if __name__ == "__main__":
    main()
