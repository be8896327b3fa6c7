#!/bin/sh
# Two hosts on one machine: a network namespace each, joined by a virtual cable, one process of the run in each.
#   sudo sh tests/two_hosts.sh --recipe opsd --steps 2 ...        any flags of workbench.opsd
# The rendezvous is static: torchrun's c10d rendezvous looks for its own host name, which here both have.
# Both see the same disk, as hosts of a run must: the first process writes, all read.
set -eu
first=first-$$ second=second-$$ python=${PYTHON:-python}

down() {
    for host in "$first" "$second"; do
        ip netns pids "$host" 2>/dev/null | xargs -r kill -9 2>/dev/null || true
        ip netns delete "$host" 2>/dev/null || true
    done
}
trap down EXIT
trap 'exit 130' INT TERM

up() {  # NAME ADDRESS CABLE
    ip netns exec "$1" ip link set lo up
    ip netns exec "$1" ip addr add "$2/24" dev "$3"
    ip netns exec "$1" ip link set "$3" up
}

host() {  # NAME NUMBER CABLE FLAGS...
    name=$1 number=$2 cable=$3
    shift 3
    GLOO_SOCKET_IFNAME=$cable ip netns exec "$name" "$python" -m torch.distributed.run --nnodes 2 \
        --node_rank "$number" --master_addr 10.77.0.1 --master_port 29700 --nproc_per_node 1 -m workbench.opsd "$@"
}

ip netns add "$first"
ip netns add "$second"
ip link add opsd0 netns "$first" type veth peer name opsd1 netns "$second"
up "$first" 10.77.0.1 opsd0
up "$second" 10.77.0.2 opsd1
host "$second" 1 opsd1 "$@" &
other=$!
host "$first" 0 opsd0 "$@"
wait "$other"
