#!/bin/bash
# Slices of TPU VMs from the queue of Cloud TPU, and a command that is kept running on them:
#
#     SPOT=1 launch/tpu_request.sh NAME ZONE v5p-128                                                      # wait for a slice
#     SLICES=2 launch/tpu_request.sh NAME ZONE v5p-128 a3jax train llama_8b --run gs://BUCKET/runs/llama  # and train there
#
# The command is started by launch/tpu_vm.sh, whose SHARED and SLICES hold here too, and started again where it ends with what
# may pass, up to RESTARTS (20) times. Slices that were taken away are asked for again. RESERVED=1 takes reserved ones, ACCOUNT
# is the service account that they run as, EVERY the seconds between two looks (30). DRY_RUN=1 prints the request.
set -uo pipefail

if (($# < 3)); then
    echo "usage: [SPOT=1 | RESERVED=1] [SLICES=N] [ACCOUNT=NAME] [RESTARTS=N] launch/tpu_request.sh NAME ZONE TYPE [COMMAND...]" >&2
    exit 2
fi
name=$1 zone=$2 type=$3
shift 3
here=$(dirname "$0")

case $type in
    v4-*) image=tpu-ubuntu2204-base ;;
    v5litepod-*) image=v2-alpha-tpuv5-lite ;;
    v5p-*) image=v2-alpha-tpuv5 ;;
    v6e-*) image=v2-alpha-tpuv6e ;;
    *)
        echo "launch/tpu_request.sh: $type is not one of v4-N, v5litepod-N, v5p-N, v6e-N; Cloud TPU has no newer ones: take GKE" >&2
        exit 2
        ;;
esac
request=(gcloud compute tpus queued-resources create "$name" --zone="$zone" --accelerator-type="$type" --runtime-version="$image")
if ((${SLICES:-1} > 1)); then
    request+=(--node-count="$SLICES" --node-prefix="$name")
else
    request+=(--node-id="$name")
fi
[[ ${SPOT-} ]] && request+=(--spot)
[[ ${RESERVED-} ]] && request+=(--reserved)
[[ ${ACCOUNT-} ]] && request+=(--service-account="$ACCOUNT")
if [[ ${DRY_RUN-} ]]; then
    printf '%q ' "${request[@]}"
    echo
    exit
fi

say() { echo "launch/tpu_request.sh: $*" >&2; }
state() { gcloud compute tpus queued-resources describe "$name" --zone="$zone" --format='value(state.state)' 2>/dev/null; }
last='' seen='' begun='' restarts=0
while true; do
    now=$(state)
    [[ $now == "$last" ]] || say "$name is ${now:-not asked for yet}"
    last=$now
    case $now in
        ACTIVE) ;;
        '') "${request[@]}" || [[ $seen ]] || exit ;; # there is none, or it could not be asked
        FAILED | SUSPENDED) gcloud compute tpus queued-resources delete "$name" --zone="$zone" --force --quiet ;;
    esac
    [[ $now ]] && seen=1
    if [[ $now == ACTIVE ]]; then
        (($#)) || exit 0
        found=$("$here/tpu_vm.sh" "$name" "$zone" status) || found=running # a worker that cannot be reached: look again
        if [[ $found != *running* ]]; then
            statuses=$(grep -o 'exit status [0-9]*' <<<"$found" | cut -d' ' -f3 | sort -u)
            final=$(grep -vx -e 0 -e 75 -e 137 -e 143 <<<"$statuses" | head -n 1)
            if [[ $begun && $final ]]; then
                say "ended with status $final, which another start does not help"
                exit "$final"
            fi
            [[ $begun && $statuses == 0 ]] && exit 0
            if [[ $begun ]] && ((++restarts > ${RESTARTS:-20})); then
                say "ended ${RESTARTS:-20} times more after a start with what may pass; it is not started again"
                exit 75
            fi
            "$here/tpu_vm.sh" "$name" "$zone" "$@" && begun=1
        else
            begun=1
        fi
    fi
    sleep "${EVERY:-30}"
done
