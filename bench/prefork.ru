# The application of prefork.py for servers of Ruby's: a table of strings, filled and
# thinned before the server forks; requests for /work replace some of them.
random = Random.new(1)
value = ->(random) { "a" * (100 + random.rand(900)) }
table = Array.new(100_000) { value.call(random) }
table.each_index { |i| table[i] = nil if random.rand(10) >= 3 }
GC.start
own = nil

run lambda { |env|
  if env["PATH_INFO"] == "/work"
    own ||= Random.new(Process.pid)
    50.times { table[own.rand(table.size)] = nil }
    50.times { table[own.rand(table.size)] = value.call(own) if own.rand(10) < 3 }
  end
  [200, { "Content-Type" => "text/plain" }, ["#{Process.pid}\n"]]
}
