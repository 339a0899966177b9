#!/usr/bin/env bash
# A real Slurm with several nodes on this machine, to try and to test what a cluster will run. No systemd, no cgroups.
#
#   scripts/slurm_local.sh install          Debian's packages (needs root)
#   eval "$(scripts/slurm_local.sh up 2)"   controller and 2 nodes; sets SLURM_CONF in this shell
#   scripts/slurm_local.sh kill node2       as if its power went: slurmd and all that runs there
#   scripts/slurm_local.sh start node2      bring it back
#   scripts/slurm_local.sh cut node2        pull its network cable (`mend` puts it back)
#   scripts/slurm_local.sh down             cancel the jobs and stop everything
#
# As root every node has a host name and a network of its own, so that localhost is another machine on each. Otherwise, or
# with SLURM_LOCAL_NETWORK=host, all share those of this machine. SLURM_LOCAL_DIR: where all files lie (a short path,
# other than that of a second cluster). SLURM_LOCAL_PORT: the first of the ports. SLURM_LOCAL_CPUS: CPUs of a node.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin
DIR=${SLURM_LOCAL_DIR:-${TMPDIR:-/tmp}/scaledl-slurm-$(id -u)}
PORT=${SLURM_LOCAL_PORT:-17000}
NAME=sdl$((PORT % 1000))   # of the bridge and the network namespaces
export SLURM_CONF=$DIR/slurm.conf

say() { echo "slurm_local: $*" >&2; }
fail() { say "$*"; exit 1; }

separate() { # whether nodes get networks of their own
  [ "${SLURM_LOCAL_NETWORK:-own}" = own ] && unshare --mount --uts --net true 2>/dev/null && command -v ip >/dev/null
}

install() {
  apt-get install -y --no-install-recommends slurmctld slurmd slurm-client munge iproute2
}

write_config() { # nodes
  local address=$1 controller=$2 nodes=$3
  cat >"$SLURM_CONF" <<CONF
ClusterName=local
SlurmctldHost=$(hostname -s)($controller)
SlurmctldPort=$PORT
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthInfo=socket=$DIR/munge.socket,cred_expire=5
StateSaveLocation=$DIR/state
SlurmdSpoolDir=$DIR/spool/%n
SlurmctldPidFile=$DIR/pids/slurmctld
SlurmdPidFile=$DIR/pids/%n
SlurmctldLogFile=$DIR/logs/slurmctld
SlurmdLogFile=$DIR/logs/%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=bf_interval=1
SlurmdParameters=config_overrides
ReturnToService=2
MinJobAge=3600
KillWait=10
SlurmdTimeout=${SLURM_LOCAL_NODE_TIMEOUT:-20}
PropagateResourceLimits=NONE
CONF
  for index in $(seq "$nodes"); do
    echo "NodeName=node$index NodeHostname=$(hostname -s) NodeAddr=$address.$index Port=$((PORT + index)) CPUs=${SLURM_LOCAL_CPUS:-4} RealMemory=8000"
  done >>"$SLURM_CONF"
  echo "PartitionName=main Nodes=node[1-$nodes] Default=YES MaxTime=INFINITE State=UP" >>"$SLURM_CONF"
  # This Slurm wants a cgroup plugin by name, and with linuxproc never looks for its mount point.
  printf 'CgroupPlugin=cgroup/v1\nCgroupMountpoint=%s/none\n' "$DIR" >"$DIR/cgroup.conf"
  { cat /etc/hosts; for index in $(seq "$nodes"); do echo "$address.$index node$index"; done; } >"$DIR/hosts"
}

network_up() { # address nodes
  ip link add "$NAME" type bridge
  ip address add "$1.254/24" dev "$NAME"
  ip link set "$NAME" up
  for index in $(seq "$2"); do
    ip netns add "$NAME-node$index"
    ip link add "$NAME-$index" type veth peer name eth0 netns "$NAME-node$index"
    ip link set "$NAME-$index" master "$NAME" up
    ip -n "$NAME-node$index" address add "$1.$index/24" dev eth0
    ip -n "$NAME-node$index" link set eth0 up
    ip -n "$NAME-node$index" link set lo up
  done
}

network_down() {
  for namespace in $(ip netns list 2>/dev/null | awk -v name="$NAME-" 'index($1, name) == 1 {print $1}'); do
    ip netns del "$namespace"
  done
  if ip link show "$NAME" >/dev/null 2>&1; then ip link del "$NAME"; fi
}

start() { # node
  mkdir -p "$DIR/spool/$1"
  if [ -e "/run/netns/$NAME-$1" ]; then
    nsenter --net="/run/netns/$NAME-$1" unshare --mount --uts bash -ec \
      "mount --bind $DIR/hosts /etc/hosts; hostname $1; exec slurmd -N $1"
  else
    slurmd -N "$1"
  fi
}

alive() { # process id; one that nobody has waited for is dead
  local state
  state=$(sed 's/.*) //' "/proc/$1/stat" 2>/dev/null) && [ "${state%% *}" != Z ]
}

kill_node() { # node
  if [ -e "/run/netns/$NAME-$1" ]; then
    ip netns pids "$NAME-$1" | xargs -r kill -KILL
  else
    # All that a job starts there, and their parents, the managers of its steps, which nothing else tells apart.
    local tasks managers
    tasks=$(grep -lzsF "SLURMD_NODENAME=$1" /proc/[0-9]*/environ | cut -d/ -f3) || true
    managers=$(for task in $tasks; do ps -o ppid= -p "$task"; done | while read -r parent; do
      if grep -qsF slurmstepd "/proc/$parent/comm"; then echo "$parent"; fi
    done)
    # shellcheck disable=SC2086
    kill -KILL "$(<"$DIR/pids/$1")" $managers $tasks 2>/dev/null || true
  fi
  rm -f "$DIR/pids/$1"
}

up() {
  local nodes=${1:-2} address=127.0.1 controller=127.0.0.1
  command -v slurmctld >/dev/null && command -v munged >/dev/null || fail "Slurm is not installed; scripts/slurm_local.sh install (as root), or: apt-get install slurmctld slurmd slurm-client munge"
  [ ${#DIR} -lt 60 ] || fail "SLURM_LOCAL_DIR=$DIR is too long for a socket's path; give one of fewer than 60 characters"
  if [ -e "$DIR/pids/slurmctld" ] && alive "$(<"$DIR/pids/slurmctld")"; then fail "there is a cluster in $DIR already; scripts/slurm_local.sh down stops it"; fi
  if [ -e "$DIR" ] && [ ! -e "$DIR/slurm.conf" ] && [ -n "$(ls -A "$DIR")" ]; then fail "$DIR holds other files; SLURM_LOCAL_DIR must name a new or empty folder"; fi
  rm -rf "$DIR"
  mkdir -p "$DIR"/{state,spool,logs,pids}
  chmod 755 "$DIR"
  if separate; then
    address=10.77.$((PORT % 250)) controller=10.77.$((PORT % 250)).254
    network_down
    network_up "$address" "$nodes"
  fi
  write_config "$address" "$controller" "$nodes"
  (umask 077 && head -c 1024 /dev/urandom >"$DIR/munge.key")
  munged --socket="$DIR/munge.socket" --key-file="$DIR/munge.key" --pid-file="$DIR/pids/munged" \
    --log-file="$DIR/logs/munged" --seed-file="$DIR/munge.seed" --num-threads=2
  slurmctld -c
  for index in $(seq "$nodes"); do start "node$index"; done
  for _ in $(seq 100); do
    if [ "$(sinfo --noheader --format='%T %D' 2>/dev/null)" = "idle $nodes" ]; then
      say "$nodes nodes are up; \`scripts/slurm_local.sh down\` stops them"
      echo "export SLURM_CONF=$SLURM_CONF"
      return
    fi
    sleep 0.1
  done
  tail -qn 5 "$DIR"/logs/* >&2
  fail "the cluster did not come up; its logs lie in $DIR/logs"
}

down() {
  [ -d "$DIR/pids" ] || { say "there is no cluster in $DIR"; return; }
  timeout 5 scancel --user="$(id -un)" 2>/dev/null || true
  for _ in $(seq 50); do
    [ -n "$(timeout 5 squeue --noheader 2>/dev/null)" ] || break
    sleep 0.2
  done
  for file in "$DIR"/pids/node* "$DIR"/pids/slurmctld "$DIR"/pids/munged; do
    [ -s "$file" ] || continue
    local pid
    pid=$(<"$file")
    kill "$pid" 2>/dev/null || true
    for _ in $(seq 50); do alive "$pid" || break; sleep 0.1; done
    if alive "$pid"; then kill -KILL "$pid"; fi
  done
  network_down
  rm -rf "$DIR"
  say "stopped"
}

case ${1:-} in
  install) install ;;
  up) up "${@:2}" ;;
  down) down ;;
  start) start "${2:?which node}" ;;
  kill) kill_node "${2:?which node}" ;;
  cut) ip link set "$NAME-${2#node}" down ;;
  mend) ip link set "$NAME-${2#node}" up ;;
  *) sed -n '2,/^set/p' "${BASH_SOURCE[0]}" | sed '/^set/d; s/^# \{0,1\}//' >&2; exit 2 ;;
esac
