#!/usr/bin/env bash
# A real SLURM of two nodes on this machine, for the tests: needs slurm-wlm and munge (Debian), and root.
#   tests/slurm_cluster.sh start FOLDER    starts munged, slurmctld and two slurmd; their files are under FOLDER
#   tests/slurm_cluster.sh stop FOLDER     ends them
# Clients find the cluster through SLURM_CONF=FOLDER/slurm.conf.
set -euo pipefail
action=$1
folder=$(realpath -m "$2")
export SLURM_CONF=$folder/slurm.conf
host=$(hostname -s)
port=${SLURM_TEST_PORT:-17817}

start() {
    mkdir -p "$folder"/{state,munge}
    chmod 700 "$folder/munge"
    head -c 1024 /dev/urandom >"$folder/munge/key"
    chmod 400 "$folder/munge/key"
    # --force: munged refuses folders that others may write to, as those above the tests' may be.
    munged --force --key-file "$folder/munge/key" --socket "$folder/munge/socket" --pid-file "$folder/munged.pid" \
        --log-file "$folder/munged.log" --seed-file "$folder/munge/seed" 2>>"$folder/munged.log"
    cat >"$SLURM_CONF" <<EOF
ClusterName=sb3dmpo
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool-%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd-%n.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd-%n.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
MpiDefault=none
ReturnToService=2
NodeName=node[1-2] NodeHostname=$host NodeAddr=127.0.0.1 Port=[$((port + 1))-$((port + 2))] CPUs=1 RealMemory=4000
PartitionName=main Nodes=ALL Default=YES MaxTime=60 State=UP
EOF
    slurmctld
    for node in node1 node2; do
        slurmd -N "$node"
    done
    for _ in $(seq 60); do
        if [ "$(sinfo --noheader --Node --states=idle --format=%N 2>/dev/null | sort -u | wc -l)" = 2 ]; then
            sinfo --Node --long
            return
        fi
        sleep 0.5
    done
    echo "the two nodes have not come up within 30 s, see $folder/*.log" >&2
    return 1
}

stop() {
    # The last steps report to slurmctld, and wait for it for ever if it has gone.
    for _ in $(seq 60); do
        if [ -z "$(timeout 5 squeue --noheader 2>/dev/null)" ]; then
            break
        fi
        sleep 0.5
    done
    for name in slurmd-node1 slurmd-node2 slurmctld munged; do
        if [ -f "$folder/$name.pid" ]; then
            kill "$(cat "$folder/$name.pid")" 2>/dev/null || true
        fi
    done
}

"$action"
