# Waits and is woken while it frees memory, in two threads; prints what, the seconds
# that it was to take, and those that it took.
use strict;
use warnings;
use threads;
use IO::Select;
use Time::HiRes ();

sub fragment {
    my @objects = map { "x" x 200 . $_ } 1 .. 50000;
    undef $objects[$_] for grep { $_ % 10 } 0 .. $#objects;
    return \@objects;
}

sub timed {
    my ($name, $wanted, $wait) = @_;
    my $kept = fragment();
    my $begin = Time::HiRes::clock_gettime(Time::HiRes::CLOCK_MONOTONIC());
    $wait->();
    my $took = Time::HiRes::clock_gettime(Time::HiRes::CLOCK_MONOTONIC()) - $begin;
    print "$name $wanted $took\n";
}

my $other = threads->create(sub {
    my $end = time + 5;
    while (time < $end) { fragment(); select undef, undef, undef, 0.01; }
});
pipe my $reader, my $writer or die;
$SIG{ALRM} = sub { };
timed "sleep", 1, sub { sleep 1 };
timed "usleep", 0.5, sub { Time::HiRes::usleep(500000) };
timed "select", 0.5, sub { select undef, undef, undef, 0.5 };
timed "can_read", 0.5, sub { IO::Select->new($reader)->can_read(0.5) };
timed "alarm", 0.5, sub { Time::HiRes::alarm(0.5); sleep 3 };
timed "waitpid", 0.5, sub { system "sleep", "0.5" };
$other->join;
