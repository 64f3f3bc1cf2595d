-- Waits and is woken while it frees memory; prints what, the seconds that it was to
-- take, and those that it took.
local socket = require("socket")

local function fragment()
	local objects = {}
	for i = 1, 50000 do
		objects[i] = string.rep("x", 200) .. i
	end
	for i = 1, 50000 do
		if i % 10 ~= 0 then
			objects[i] = false
		end
	end
	collectgarbage()
	return objects
end

local function timed(name, wanted, wait)
	local kept = fragment()
	local begin = socket.gettime()
	wait()
	print(name, wanted, socket.gettime() - begin)
	return kept
end

local server = socket.bind("127.0.0.1", 0)
local _, port = server:getsockname()
local client = socket.connect("127.0.0.1", port)
client:settimeout(0.5)
timed("sleep", 1, function() socket.sleep(1) end)
timed("select", 0.5, function() socket.select({ client }, nil, 0.5) end)
timed("receive", 0.5, function() client:receive() end)
timed("execute", 0.5, function() os.execute("sleep 0.5") end)
