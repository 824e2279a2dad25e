#!/bin/bash
# What `make run` does: an engine in a directory of its own, a pod of examples/web.yaml in it, and the proof that nothing
# is left behind. It needs root and the programs that `make build` makes; no registry, no other container engine.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PATH:/usr/local/go/bin"

ARCH=$(uname -m | sed -e s/x86_64/amd64/ -e s/aarch64/arm64/)
BIN=${BIN:-$PWD/bin/linux-$ARCH}
HOST_PORT=${HOST_PORT:-18080}

if [ -t 1 ]; then bold=$'\e[1m' dim=$'\e[2m' plain=$'\e[0m'; else bold='' dim='' plain=''; fi
step() { printf '\n%s==> %s%s\n' "$bold" "$*" "$plain"; }
show() { printf '%s$ %s%s\n' "$dim" "$*" "$plain"; "$@"; }
fail() { printf '\n%smake run failed:%s %s\n' "$bold" "$plain" "$*" >&2; exit 1; }

[ "$(id -u)" = 0 ] || fail "an engine needs root: sudo make run"
for program in evenkeel evenkeel-shim runc; do
	[ -x "$BIN/$program" ] || fail "$BIN/$program is missing: run make build first"
done

dir=$(mktemp -d /tmp/evenkeel-run.XXXXXX)
log=$dir/engine.log
engine=
ok=
export EVENKEEL_ADDRESS=unix://$dir/evenkeel.sock
evenkeel() { "$BIN/evenkeel" "$@"; }

stop_engine() {
	[ -n "$engine" ] || return 0
	kill -TERM "$engine" 2>/dev/null || true
	wait "$engine" || true
	engine=
}

# However this ends: no pod, no engine and no directory stays.
finish() {
	status=$?
	trap - EXIT INT TERM
	if [ -n "$engine" ]; then
		ids=$(evenkeel pods -q 2>/dev/null || true)
		[ -z "$ids" ] || evenkeel rm -f -t 1 $ids >/dev/null 2>&1 || true
		stop_engine
	fi
	if [ -z "$ok" ] && [ -s "$log" ]; then
		printf '\nThe engine said last:\n' >&2
		tail -n 30 "$log" >&2
	fi
	rm -rf --one-file-system "$dir" || status=1
	exit "$status"
}
trap finish EXIT
trap 'exit 130' INT TERM

step "Building an image of our own web server (examples/web)"
CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o "$dir/web" ./examples/web
go run ./examples/image -arch "$ARCH" -tag evenkeel.test/web:demo -o "$dir/web.tar" "$dir/web"
ls -lh "$dir/web.tar" | awk '{print "web.tar, " $5}'

step "Starting an engine in a directory of its own"
# A configuration and a pod range of its own: this machine's may be those of an engine that runs here.
net=$(($$ % 256))
while ip -4 -o address | grep -q " 10\.198\.$net\."; do net=$(((net + 1) % 256)); done
printf 'version = 1\n[network.builtin]\nsubnets = ["10.198.%d.0/24"]\n' "$net" >"$dir/config.toml"
serve=("$BIN/evenkeel" serve --config "$dir/config.toml" --root "$dir/root" --state "$dir/state" --listen "$EVENKEEL_ADDRESS" --network builtin)
printf '%s$ %s%s\n' "$dim" "${serve[*]}" "$plain"
"${serve[@]}" >"$log" 2>&1 &
engine=$!
for _ in $(seq 100); do
	[ -S "$dir/evenkeel.sock" ] && break
	kill -0 "$engine" 2>/dev/null || fail "the engine has ended"
	sleep 0.1
done
[ -S "$dir/evenkeel.sock" ] || fail "the engine has not opened its socket within ten seconds"
evenkeel version

step "Importing the image"
show evenkeel import "$dir/web.tar"
show evenkeel images

step "Running the pod of examples/web.yaml"
sed "s/hostPort: 18080/hostPort: $HOST_PORT/" examples/web.yaml >"$dir/web.yaml"
show evenkeel run --detach "$dir/web.yaml"
show evenkeel pods
show evenkeel ps -a

step "Asking the web server through host port $HOST_PORT of this machine"
show "$dir/web" -retry 10s -get "http://127.0.0.1:$HOST_PORT/hello" | tee "$dir/answer"
grep -q 'prepared by its init container' "$dir/answer" || fail "the answer lacks what the init container wrote"
grep -q '^path:    /hello' "$dir/answer" || fail "the answer is not the one to our question"

step "Running a command in a container"
show evenkeel exec web -c server -- /web -get http://localhost:8080/from-an-exec | tee "$dir/exec"
grep -q '^path:    /from-an-exec' "$dir/exec" || fail "exec did not reach the server"

step "Reading the logs"
show evenkeel logs --tail 5 web 2>&1 | tee "$dir/logs"
grep -q '/from-an-exec' "$dir/logs" || fail "the server's log lacks the request"

step "Removing the pod"
show evenkeel rm -f web
[ -z "$(evenkeel pods -q)" ] || fail "the pod is still there"

step "Stopping the engine and looking for leftovers"
show evenkeel leftovers || fail "the engine left something behind while it ran"
stop_engine
show "$BIN/evenkeel" leftovers --config "$dir/config.toml" --root "$dir/root" --state "$dir/state" || fail "the engine left something behind"
ok=yes
printf '\n%sDone: the pod ran, and nothing was left behind.%s\n' "$bold" "$plain"
