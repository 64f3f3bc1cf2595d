<?php
// Waits and is woken while it frees memory; prints what, the seconds that it was to
// take, and those that it took.

function fragment() {
    $objects = [];
    for ($i = 0; $i < 50000; $i++) {
        $objects[] = str_repeat("x", 200) . $i;
    }
    for ($i = 0; $i < 50000; $i++) {
        if ($i % 10 != 0) {
            $objects[$i] = null;
        }
    }
    return $objects;
}

function timed($name, $wanted, $wait) {
    $kept = fragment();
    $begin = hrtime(true);
    $wait();
    printf("%s %s %f\n", $name, $wanted, (hrtime(true) - $begin) / 1e9);
}

$pair = stream_socket_pair(STREAM_PF_UNIX, STREAM_SOCK_STREAM, 0);
timed("sleep", 1, fn() => sleep(1));
timed("usleep", 0.5, fn() => usleep(500000));
timed("nanosleep", 0.5, fn() => time_nanosleep(0, 500000000));
timed("stream_select", 0.5, function () use ($pair) {
    [$read, $write, $except] = [[$pair[0]], null, null];
    stream_select($read, $write, $except, 0, 500000);
});
timed("exec", 0.5, fn() => exec("sleep 0.5"));
pcntl_signal(SIGALRM, fn() => null);
timed("alarm", 1, function () {
    pcntl_alarm(1);
    sleep(3);
});
