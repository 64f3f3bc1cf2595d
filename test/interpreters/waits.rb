# Waits and is woken while it frees memory, in two threads; prints what, the seconds
# that it was to take, and those that it took.
require "timeout"

def fragment
  objects = Array.new(50_000) { |i| "x" * 200 + i.to_s }
  objects.each_index { |i| objects[i] = nil unless i % 10 == 0 }
  GC.start
  objects
end

def now
  Process.clock_gettime(Process::CLOCK_MONOTONIC)
end

def timed(name, wanted)
  kept = fragment
  start = now
  yield
  puts "#{name} #{wanted} #{now - start}"
  kept
end

stop = now + 5
other = Thread.new { (fragment; sleep 0.01) while now < stop }
reader, writer = IO.pipe
queue = Thread::Queue.new
timed("sleep", 1) { sleep 1 }
timed("select", 0.5) { IO.select([reader], nil, nil, 0.5) }
timed("Queue", 0.5) { queue.pop(timeout: 0.5) } if RUBY_VERSION >= "3.2"
timed("Timeout", 0.5) { begin Timeout.timeout(0.5) { sleep 3 }; rescue Timeout::Error; end }
timed("join", 0.5) { Thread.new { sleep 3 }.join(0.5) }
timed("system", 0.5) { system("sleep", "0.5") }
other.join
writer.close
