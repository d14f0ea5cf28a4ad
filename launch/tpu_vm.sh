#!/bin/bash
# The same command on every worker of a TPU VM (a slice), or of several:
#
#     launch/tpu_vm.sh NAME ZONE a3jax train llama_8b --run /shared/runs/llama_8b     # install this folder, and start
#     launch/tpu_vm.sh NAME ZONE                                                      # the end of each worker's log
#     launch/tpu_vm.sh NAME ZONE stop                                                 # save, and end
#
# SHARED=HOST:/EXPORT mounts that NFS share (Filestore) as /shared on every worker first. SLICES=N stands for the slices NAME-0 to
# NAME-(N-1) of one request, which is what launch/tpu_request.sh makes. DRY_RUN=1 prints the commands.
# On the workers, all is in ~/a3jax; the command's output in ~/a3jax/run.log.
set -euo pipefail

if (($# < 2)); then
    echo "usage: [SHARED=HOST:/EXPORT] [SLICES=N] [DRY_RUN=1] launch/tpu_vm.sh NAME ZONE [COMMAND... | status | stop]" >&2
    exit 2
fi
name=$1 zone=$2
shift 2
nodes=("$name")
if ((${SLICES:-1} > 1)); then nodes=($(seq -f "$name-%g" 0 $((SLICES - 1)))); fi

run() {
    if [[ ${DRY_RUN-} ]]; then
        printf '%q ' "$@"
        echo
    else
        "$@"
    fi
}
on_all_workers() {
    for node in "${nodes[@]}"; do run gcloud compute tpus tpu-vm ssh "$node" --zone="$zone" --worker=all --command="$1"; done
}

case ${1-} in
    '') on_all_workers 'echo "--- $(hostname)"; tail -n 5 a3jax/run.log'; exit ;;
    status) # "running", or the last line of the log, which is the exit status
        on_all_workers 'cd a3jax 2>/dev/null || exit 0
if kill -0 "$(cat run.pid)" 2>/dev/null; then echo running; else tail -n 1 run.log; fi'
        exit
        ;;
    stop) on_all_workers 'pkill -TERM -P "$(cat a3jax/run.pid)"'; exit ;;
esac

# What git knows or would add, as it is here: an experiment need not be committed.
cd "$(dirname "$0")/.."
archive=$(mktemp -d)/a3jax.tar.gz
trap 'rm -r "$(dirname "$archive")"' EXIT
git ls-files --cached --others --exclude-standard | tar -czf "$archive" -T -
for node in "${nodes[@]}"; do
    run gcloud compute tpus tpu-vm scp "$archive" "$node:a3jax.tar.gz" --zone="$zone" --worker=all
done

# The images' own Python may be too old, so uv brings one.
install='set -e; mkdir -p a3jax; cd a3jax
if [ -e run.pid ] && kill -0 "$(cat run.pid)" 2>/dev/null; then echo "it still runs; stop it first" >&2; exit 1; fi
tar -xzf ../a3jax.tar.gz; python3 -m pip install --quiet --user uv
[ -d .venv ] || ~/.local/bin/uv venv --quiet --python 3.12
~/.local/bin/uv pip install --quiet -c launch/constraints-tpu.txt ".[tpu,buckets]"'
if [[ ${SHARED-} ]]; then
    install+="
sudo mkdir -p /shared; mountpoint -q /shared ||
{ sudo apt-get install --yes --quiet nfs-common; sudo mount -t nfs $(printf %q "$SHARED") /shared; }"
fi
on_all_workers "$install"
command=$(printf '%q ' "$@")
on_all_workers 'cd a3jax; export PATH=$PWD/.venv/bin:$PATH PYTHONUNBUFFERED=1
nohup bash -c '\''"$@"; echo "exit status $?"'\'' - '"$command"'>>run.log 2>&1 </dev/null & echo $! >run.pid'
