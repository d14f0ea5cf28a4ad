#!/bin/bash
# Several processes of one command on this machine, that find each other on loopback:
#
#     launch/local.sh 2 a3jax train tiny                 # each process has the GPU of its number, if there are GPUs
#     DEVICES=2 launch/local.sh 2 a3jax train tiny       # each process simulates two devices on the CPU
#
# Every line of output begins with the number of its process. Signals reach each process once. The exit status is 0 if all
# ended with 0, else the first, by number, that is not 75: that one says no more than that another start may help.
set -um # with job control, Ctrl-C in a terminal reaches this script alone, which passes it on

if ! [[ ${1-} =~ ^[1-9][0-9]*$ && $# -gt 1 ]]; then
    echo "usage: [DEVICES=N] launch/local.sh PROCESSES COMMAND..." >&2
    exit 2
fi
count=$1
shift
python=$(command -v python3 || command -v python) || { echo "launch/local.sh: there is no python3 on PATH" >&2; exit 2; }
port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])') || exit
export JAX_COORDINATOR_ADDRESS=127.0.0.1:$port JAX_NUM_PROCESSES=$count PYTHONUNBUFFERED=1
if [[ ${DEVICES-} ]]; then
    export JAX_PLATFORMS=cpu XLA_FLAGS="${XLA_FLAGS-} --xla_force_host_platform_device_count=$DEVICES"
fi

pipes=$(mktemp -d) || exit
trap 'rm -r "$pipes"' EXIT
processes=() printers=() interrupted=
pass_on() {
    interrupted=1
    kill -s "$1" "${processes[@]}" 2>/dev/null
}
trap 'pass_on INT' INT
trap 'pass_on TERM' TERM HUP

for ((i = 0; i < count; i++)); do
    mkfifo "$pipes/$i"
    sed -u "s/^/$i: /" <"$pipes/$i" &
    printers+=($!)
    JAX_PROCESS_ID=$i JAX_LOCAL_DEVICE_IDS=${JAX_LOCAL_DEVICE_IDS-$i} "$@" >"$pipes/$i" 2>&1 </dev/null &
    processes+=($!)
done

status=0
for process in "${processes[@]}"; do
    while
        interrupted=
        wait "$process"
        ended=$?
        [[ $interrupted ]] # a signal ends the wait, not the process
    do :; done
    if ((ended && (status == 0 || status == 75))); then status=$ended; fi
done
wait "${printers[@]}"
exit "$status"
