"""A real Redis on meshed memory: nothing it stores or saves may differ.

Random commands go to an unchanged redis-server and to a model of it in Python.
The server forks for BGSAVE while its heap is meshed and written to; each dump is
loaded by a second server, which must agree with the model as of the fork.
"""

import copy
import os
import random
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
import redis

from conftest import BUILD, LIBS, TEST, without_core_files

CONF = "mesh:true,mesh_period_ms:0"
NKEYS = 60000
BATCH = 500


def redis_server(directory):
    """The server's path; Debian's redis-tools has it under another name."""
    server = BUILD / "redis" / "redis-server"
    if not server.exists():
        server = directory / "redis-server"
        server.symlink_to("/usr/bin/redis-check-rdb")
    return server


def await_true(condition, seconds=60):
    """Waits for a condition that nothing but asking for it can tell."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s in vain"
        time.sleep(0.02)


class Server:
    """A redis-server in a directory of its own, with the dump given, if any."""

    def __init__(self, directory, dump=None, conf=CONF, options=(), env=None,
                 before=()):
        directory.mkdir(exist_ok=True)
        if dump:
            shutil.copy(dump, directory / "dump.rdb")
        self.dump = directory / "dump.rdb"
        self.log = directory / "log"
        socket = directory / "socket"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [*before, redis_server(directory), "--port", "0", "--unixsocket", socket,
                 "--dir", directory, "--save", "", "--rdb-key-save-delay", "50",
                 *options],
                env=os.environ | (env or {"LD_LIBRARY_PATH": str(LIBS["release"]),
                                          "MALLOC_CONF": conf}),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                preexec_fn=without_core_files)
        self.redis = redis.Redis(unix_socket_path=str(socket), socket_timeout=60)
        await_true(self.answers)

    def answers(self):
        # What starts a daemon ends.
        assert self.process.poll() in (None, 0), self.log.read_text()
        try:
            return self.redis.ping()
        except (redis.ConnectionError, redis.BusyLoadingError):
            return False

    def stop(self):
        self.redis.close()
        self.process.kill()
        self.process.wait(timeout=60)

    def mesh_text(self, name):
        """A value of stats.mesh."""
        text = self.redis.execute_command("MEMORY MALLOC-STATS").decode()
        return re.search(rf'^Meshing:$.*?^  {name}: "?(.*?)"?$', text, re.M | re.S)[1]

    def mesh(self, name):
        """A number of these."""
        return int(self.mesh_text(name))

    def saving(self):
        return self.redis.info("persistence")["rdb_bgsave_in_progress"]


class Model:
    """What the server should hold, and the commands that change both."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.keys = {}

    def value(self):
        return self.random.randbytes(int(2 ** self.random.uniform(3, 11.5)))

    def command(self, pipe):
        """One random command that adds to a key or changes it."""
        change = self.random.choice(
            (self.set, self.set, self.set, self.append, self.hset, self.hdel,
             self.push, self.pop, self.zadd, self.zrem))
        change(pipe, self.random.randrange(NKEYS))

    def set(self, pipe, number):
        key = b"string:%d" % number
        self.keys[key] = self.value()
        pipe.set(key, self.keys[key])

    def append(self, pipe, number):
        key, value = b"string:%d" % number, self.value()
        self.keys[key] = self.keys.get(key, b"") + value
        pipe.append(key, value)

    def hset(self, pipe, number):
        key = b"hash:%d" % (number // 20)
        fields = {b"field:%d" % self.random.randrange(300): self.value()
                  for _ in range(3)}
        self.keys.setdefault(key, {}).update(fields)
        pipe.hset(key, mapping=fields)

    def hdel(self, pipe, number):
        key = b"hash:%d" % (number // 20)
        fields = self.keys.get(key, {b"": b""})
        field = self.random.choice(list(fields))
        fields.pop(field)
        if not fields:
            self.keys.pop(key, None)
        pipe.hdel(key, field)

    def push(self, pipe, number):
        key, value = b"list:%d" % (number // 20), self.value()
        self.keys.setdefault(key, []).append(value)
        pipe.rpush(key, value)

    def pop(self, pipe, number):
        key = b"list:%d" % (number // 20)
        values = self.keys.get(key, [b""])
        values.pop(0)
        if not values:
            self.keys.pop(key, None)
        pipe.lpop(key)

    def zadd(self, pipe, number):
        key = b"zset:%d" % (number // 20)
        members = {b"%020d" % self.random.randrange(1000):
                   float(self.random.randrange(1000)) for _ in range(3)}
        self.keys.setdefault(key, {}).update(members)
        pipe.zadd(key, members)

    def zrem(self, pipe, number):
        key = b"zset:%d" % (number // 20)
        members = self.keys.get(key, {b"": 0.0})
        member = self.random.choice(list(members))
        members.pop(member)
        if not members:
            self.keys.pop(key, None)
        pipe.zrem(key, member)

    def commands(self, server, n):
        pipe = server.redis.pipeline(transaction=False)
        for _ in range(n):
            self.command(pipe)
            if len(pipe) == BATCH:
                pipe.execute()
        pipe.execute()

    def thin(self, server, live):
        """Deletes keys at random until the share live of them is left."""
        pipe = server.redis.pipeline(transaction=False)
        for key in list(self.keys):
            if self.random.random() >= live:
                del self.keys[key]
                pipe.delete(key)
            if len(pipe) == BATCH:
                pipe.execute()
        pipe.execute()

    def differences(self, server):
        """Keys that the server has otherwise."""
        assert server.redis.dbsize() == len(self.keys)
        keys, bad = list(self.keys), []
        for start in range(0, len(keys), BATCH):
            batch = keys[start:start + BATCH]
            pipe = server.redis.pipeline(transaction=False)
            for key in batch:
                {b"string": lambda k: pipe.get(k),
                 b"hash": lambda k: pipe.hgetall(k),
                 b"list": lambda k: pipe.lrange(k, 0, -1),
                 b"zset": lambda k: pipe.zrange(k, 0, -1, withscores=True),
                 }[key.split(b":")[0]](key)
            for key, answer in zip(batch, pipe.execute()):
                if key.startswith(b"zset"):
                    answer = dict(answer)
                if answer != self.keys[key]:
                    bad.append(key)
        return bad


@pytest.fixture
def start_server(tmp_path):
    """A function that starts servers, which end with the test."""
    servers = []

    def start(name, dump=None):
        servers.append(Server(tmp_path / name, dump))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


def test_nothing_differs(start_server, tmp_path):
    server = start_server("first")
    maps = Path(f"/proc/{server.process.pid}/maps").read_text()
    assert str(LIBS["release"].resolve() / "libjemalloc.so.2") in maps

    model, saved = Model(1), []
    model.commands(server, 2 * NKEYS)
    model.thin(server, 0.2)
    await_true(lambda: server.mesh("followers") > 1000)
    for n in range(8):
        model.commands(server, NKEYS // 4)
        model.thin(server, 0.4)
        before = server.mesh("nmeshes")
        # The answer comes after the fork: the dump is of this very moment.
        server.redis.bgsave()
        saved.append((tmp_path / f"{n}.rdb", copy.deepcopy(model)))
        assert server.saving()
        while server.saving():
            model.commands(server, BATCH)
            model.thin(server, 0.95)
        assert server.redis.info("persistence")["rdb_last_bgsave_status"] == "ok"
        shutil.copy(server.dump, saved[-1][0])
        await_true(lambda: server.mesh("nmeshes") > before)
    assert server.mesh("generation") == len(saved)
    assert model.differences(server) == []
    # The comparison itself can fail.
    key = next(key for key in model.keys if key.startswith(b"string"))
    server.redis.append(key, b"x")
    assert model.differences(server) == [key]

    for n, (dump, model_then) in enumerate(saved):
        second = start_server(f"second-{n}", dump)
        assert model_then.differences(second) == []
        second.stop()


@pytest.mark.parametrize("barrier", ["auto", "signal"])
def test_daemon(tmp_path, barrier):
    """A server that has become a daemon meshes as others do, at the pace of the default."""
    pidfile = tmp_path / "pid"
    server = Server(tmp_path / "daemon", conf=f"mesh:true,mesh_barrier:{barrier}",
                    options=("--daemonize", "yes", "--pidfile", pidfile))
    try:
        model = Model(2)
        model.commands(server, 3 * NKEYS)
        model.thin(server, 0.2)
        await_true(lambda: server.mesh("followers") > 1000)
        assert model.differences(server) == []
        assert server.process.wait(timeout=60) == 0
        assert int(pidfile.read_text()) != server.process.pid
    finally:
        server.redis.shutdown(nosave=True)


# As Debian's unit has it, which permits less of /usr/bin.
SANDBOX = """
mount --bind /usr/bin /usr/bin
mount --bind /usr/lib /usr/lib
mount --bind "$1" /usr/lib/jemalloc-mesh
mount -o remount,bind,noexec /
mount --bind "$1" "$1"
mount -o remount,bind,noexec "$1"
mount -t tmpfs -o size=1M none /mnt
touch /mnt/null && mount --bind /dev/null /mnt/null && mount --bind /mnt /dev
shift
exec setpriv --reuid=65534 --regid=65534 --clear-groups --no-new-privs \
    --inh-caps=-all --bounding-set=-all "$@"
"""


@pytest.fixture
def sandbox():
    """What a command is to be preceded by."""
    directory = Path("/usr/lib/jemalloc-mesh")
    made = not directory.exists()
    directory.mkdir(exist_ok=True)
    yield ["unshare", "-m", "sh", "-e", "-c", SANDBOX, "sh", LIBS["release"].resolve()]
    if made:
        directory.rmdir()


def test_hardened_unit(sandbox):
    """The drop-in file does where code is mapped from /usr/lib only, without privileges."""
    text = (TEST.parent / "docs" / "redis-server.conf").read_text()
    env = dict(re.findall(r"^Environment=(\w+)=(.*)$", text, re.M))
    # The library that lies elsewhere is ignored, so all that is tested.
    elsewhere = LIBS["release"].resolve() / "libjemalloc.so.2"
    run = subprocess.run([*sandbox, "env", f"LD_PRELOAD={elsewhere}", "true"],
                         capture_output=True, text=True)
    assert run.returncode == 0 and "cannot be preloaded" in run.stderr, run

    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        place = Path(directory) / "redis"
        place.mkdir(mode=0o755)
        shutil.chown(place, 65534, 65534)
        server = Server(place, env={"PATH": os.environ["PATH"]}, before=[
            *sandbox, "env", *(f"{name}={value}" for name, value in env.items())])
        try:
            model = Model(3)
            model.commands(server, 3 * NKEYS)
            model.thin(server, 0.2)
            await_true(lambda: server.mesh("followers") > 1000)
            assert server.mesh_text("barrier") == "signal"
            assert model.differences(server) == []
        finally:
            server.stop()
