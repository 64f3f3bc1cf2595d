# What strings.c does, with Ruby's own strings:
#
#	ruby strings.rb BYTES FIRST LAST SECONDS SEED

require "fiddle"
require "json"

limit, first, last, seconds, seed = ARGV.map { |word| Integer(word) }

# The file that malloc comes from.
LIBRARY = begin
  malloc = Fiddle::Handle::DEFAULT["malloc"]
  File.foreach("/proc/self/maps").find { |line|
    from, to = line.split[0].split("-").map { |address| address.to_i(16) }
    (from...to).cover?(malloc)
  }.split[-1]
end

def report(phase, live)
  puts JSON.generate({phase:, live:, library: LIBRARY})
  $stdout.flush
  $stdin.gets
end

random = Random.new(seed)
strings = Array.new(limit / first)
strings.clear
bytes = 0
report("begin", 0)
length = first
while length <= last
  while bytes + length <= limit
    # The last byte is the terminator that Ruby adds.
    strings << "a" * (length - 1)
    bytes += length
  end
  report("filled #{length}", bytes)
  strings.select! { random.rand(4) == 0 }
  bytes = strings.sum { |string| string.bytesize + 1 }
  GC.start
  sleep(seconds)
  report("kept #{length}", bytes)
  length *= 2
end
sleep(10 * seconds)
report("idled", bytes)
