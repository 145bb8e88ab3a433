# Waits until its standard input ends, then ends the processes that it was told of, runs the commands that it was told of
# (the last one first) and removes the directory $1. Lines of input: "process PID START-TIME", "command TEXT", "keep".
directory=$1
kept=
while read -r word rest; do
  case $word in
    process) echo "$rest" >>"$directory/processes" ;;
    command) echo "$rest" >>"$directory/commands" ;;
    keep) kept=yes ;;
  esac
done
# Whether PID is still the process that began at START-TIME; a dead one that waits for its parent is not.
is_alive() {
  stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
  wanted=$2
  set -- ${stat##*) }
  [ "$1" != Z ] && [ "${20}" = "$wanted" ]
}
[ -f "$directory/processes" ] || : >"$directory/processes"
while read -r pid start; do
  if is_alive "$pid" "$start"; then kill -KILL "$pid"; fi
done <"$directory/processes"
# The killed take a moment; ten seconds at most.
for pause in 0.1 0.2 0.4 0.8 1 1 2 2 2; do
  left=
  while read -r pid start; do
    if is_alive "$pid" "$start"; then left=yes; fi
  done <"$directory/processes"
  [ -n "$left" ] || break
  sleep $pause
done
if [ -f "$directory/commands" ]; then
  sed '1!G;h;$!d' "$directory/commands" | while read -r command; do sh -c "$command"; done
fi
rm -f "$directory/guard"
[ -n "$kept" ] || rm -rf "$directory"
