"""A fragmented redis-server, and a client that loads it, for other benches.

The server is filled with values of 240 bytes, loses six of seven at random, and is
filled up again with values of 492 bytes, which leaves the slabs of the first ones
mostly empty.  The client reads, replaces and overwrites values, always with the same
bytes, so that the server holds what it held while its memory changes.
"""

import hashlib
import multiprocessing
import random
import time

import common
from common import resp

# (values per MB of data, size, share that stays)
PHASES = ((2900, 240, 0.15), (1450, 492, 1))
PIPELINE = 500
LOADED = 100_000  # keys that the load is about
COMMANDS = 16  # in one pipeline of the load
REST_S = 2  # meshing is at rest when it has done nothing for so long
MESH_TIMEOUT_S = 180


def key(phase, number):
    return b"key:%d:%09d" % (phase, number)


def value(phase, number):
    return hashlib.shake_128(key(phase, number)).digest(PHASES[phase][1])


def fill(server, megabytes):
    """Fills and fragments the server; returns the keys that are in it."""
    rng = random.Random(1)
    present = []
    for phase, (per_mb, _, stay) in enumerate(PHASES):
        count = per_mb * megabytes
        for start in range(0, count, PIPELINE):
            numbers = range(start, min(start + PIPELINE, count))
            common.exchange(
                server.socket,
                b"".join(resp(b"SET", key(phase, n), value(phase, n))
                         for n in numbers), b"+OK\r\n" * len(numbers))
        kept = set(rng.sample(range(count), round(count * stay)))
        gone = [n for n in range(count) if n not in kept]
        for start in range(0, len(gone), PIPELINE):
            numbers = gone[start:start + PIPELINE]
            common.exchange(
                server.socket,
                b"".join(resp(b"DEL", key(phase, n)) for n in numbers),
                b":1\r\n" * len(numbers))
        present += ((phase, n) for n in kept)
    return present


def await_meshed(server):
    """Waits until meshing comes to rest."""
    seen, since = None, time.monotonic()
    deadline = since + MESH_TIMEOUT_S
    while time.monotonic() < deadline:
        stats = server.mesh_stats()
        now = stats.get("nmeshes")
        if now != seen:
            seen, since = now, time.monotonic()
        elif time.monotonic() - since > REST_S:
            break
        time.sleep(0.2)


def exchanges(keys):
    """Pipelines of the load: a third each of GET, SET (of new memory) and
    SETRANGE (in place)."""
    rng = random.Random(2)
    made = []
    chosen = rng.sample(keys, min(LOADED, len(keys)))
    for start in range(0, len(chosen), COMMANDS):
        request, reply = [], []
        for phase, n in chosen[start:start + COMMANDS]:
            name, text = key(phase, n), value(phase, n)
            which = rng.randrange(3)
            if which == 0:
                request.append(resp(b"GET", name))
                reply.append(b"$%d\r\n%b\r\n" % (len(text), text))
            elif which == 1:
                request.append(resp(b"SET", name, text))
                reply.append(b"+OK\r\n")
            else:
                request.append(resp(b"SETRANGE", name, b"0", text))
                reply.append(b":%d\r\n" % len(text))
        made.append((b"".join(request), b"".join(reply)))
    return made


def _send(address, made, stop, result):
    """Sends (time.monotonic(), ns waited) of each pipeline to result, once told to
    stop."""
    with common.connect(address) as connection:
        waits = []
        while not stop.is_set():
            for pipeline in made:
                begin = time.monotonic()
                waits.append((begin, common.exchange(connection, *pipeline)))
                if stop.is_set():
                    break
        result.send(waits)


class Client:
    """The client, a process of its own, which sends made over and over."""

    def __init__(self, address, made):
        context = multiprocessing.get_context("fork")
        self._stop = context.Event()
        self._receiver, sender = context.Pipe(False)
        self._process = context.Process(target=_send, daemon=True,
                                        args=(address, made, self._stop, sender))
        self._process.start()
        sender.close()

    def stop(self):
        """Ends it; returns (time.monotonic(), ns waited) of each pipeline."""
        self._stop.set()
        waits = self._receiver.recv()
        self._process.join()
        return waits
