# Waits and is woken while it frees memory, in two threads; prints what, the seconds
# that it was to take, and those that it took.
import select
import signal
import socket
import subprocess
import threading
import time


class Alarm(Exception):
    pass


def alarm(*_):
    raise Alarm


def fragment():
    objects = [bytearray(600) for _ in range(50000)]
    return objects[::10]


def timed(name, wanted, wait):
    kept = fragment()
    begin = time.monotonic()
    try:
        wait()
    except (Alarm, TimeoutError):
        pass
    print(name, wanted, time.monotonic() - begin)
    return kept


def other():
    end = time.monotonic() + 6
    while time.monotonic() < end:
        fragment()
        time.sleep(0.01)


threading.Thread(target=other).start()
signal.signal(signal.SIGALRM, alarm)
near, far = socket.socketpair()
near.settimeout(0.5)
poll, epoll = select.poll(), select.epoll()
event = threading.Event()
timed("sleep", 1, lambda: time.sleep(1))
timed("select", 0.5, lambda: select.select([far], [], [], 0.5))
timed("poll", 0.5, lambda: poll.poll(500))
timed("epoll", 0.5, lambda: epoll.poll(0.5))
timed("recv", 0.5, lambda: near.recv(1))
timed("Event", 0.5, lambda: event.wait(0.5))
timed("sigtimedwait", 0.5, lambda: signal.sigtimedwait([signal.SIGUSR1], 0.5))
timed("setitimer", 0.5,
      lambda: (signal.setitimer(signal.ITIMER_REAL, 0.5), time.sleep(3)))
timed("run", 0.5, lambda: subprocess.run(["sleep", "0.5"], check=True))
