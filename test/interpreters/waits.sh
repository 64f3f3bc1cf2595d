# Waits and is woken while it frees memory; prints what, the seconds that it was to
# take, and those that it took.
fragment() {
	local i x
	printf -v x '%200s' ''
	for ((i = 0; i < 20000; i++)); do
		objects[i]=$x$i
	done
	for ((i = 0; i < 20000; i++)); do
		((i % 10 == 0)) || unset "objects[i]"
	done
}

# timed NAME WANTED COMMAND...
timed() {
	fragment
	local begin=${EPOCHREALTIME/./} end
	"${@:3}"
	end=${EPOCHREALTIME/./}
	printf '%s %s %d.%06d\n' "$1" "$2" \
	    $(((end - begin) / 1000000)) $(((end - begin) % 1000000))
}

trapped() {
	sleep 3 >/dev/null 2>&1 &
	{ sleep 0.5; kill -USR1 $$; } &
	wait %1
	kill %1
}

fifo=$(mktemp -u)
mkfifo "$fifo"
exec 3<>"$fifo"
rm "$fifo"
trap : USR1
timed read 0.5 read -r -t 0.5 -u 3
timed sleep 1 sleep 1
timed trap 0.5 trapped
