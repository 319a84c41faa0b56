#!/usr/bin/env bash
# A real Slurm cluster of several nodes on one Debian 12 machine, to try launches and to run the integration tests.
#
#   slurm/devcluster.sh up           installs what is missing, starts what is not running (20 s; at once when all is up)
#   slurm/devcluster.sh down         ends every daemon, all that runs on the nodes and all that waits
#   slurm/devcluster.sh crash n2     node n2 loses power: SIGKILL to all on it;   revive n2: it boots again
#   slurm/devcluster.sh status       nodes and jobs
#
# Needs root, but no systemd and no cgroups. Each node is a slurmd in namespaces of its own: host name, /etc/hosts,
# /dev/shm, an address on a bridge, so that 127.0.0.1 of one node is not the other's. The file system is shared. CPUs,
# memory and GPUs are pretended: one core serves four tasks, slowly; a GPU is a variable with nothing behind it.
# Partitions: debug (default), low (is preempted), high (preempts low).
set -euo pipefail
export LC_ALL=C PATH=/usr/sbin:/usr/bin:/sbin:/bin:$PATH
DIR=${DEVCLUSTER_DIR:-/tmp/salign-devcluster} # all state
NUM_NODES=${DEVCLUSTER_NODES:-4}              # n1, n2, ...
NODE_CPUS=${DEVCLUSTER_CPUS:-4}
NODE_MEM_MB=${DEVCLUSTER_MEM_MB:-16000}
NODE_GPUS=${DEVCLUSTER_GPUS:-2}
SUBNET=10.99.77
CONTROLLER=$SUBNET.254
CONTROLLER_PORT=16817 ACCOUNTING_PORT=16819 DATABASE_PORT=13306 NODE_PORT=16820
BRIDGE=salign0
export SLURM_CONF=$DIR/etc/slurm.conf
HOST=$(hostname -s)
START=$(date +%s%N)

say() { printf '[devcluster %5.1fs] %s\n' "$(awk "BEGIN {print ($(date +%s%N) - $START) / 1e9}")" "$*" >&2; }
fail() {
  say "failed: $*"
  tail -n 15 "$DIR"/log/*.log >&2 2>/dev/null || true
  exit 1
}
within() { # SECONDS COMMAND...: until the command succeeds
  local end=$(($(date +%s) + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    [ "$(date +%s)" -lt "$end" ] || return 1
    sleep 0.1
  done
}
nodes() { seq -f 'n%g' 1 "$NUM_NODES"; }
address() { echo "$SUBNET.${1#n}"; }
runs() { # PID: it is there and no zombie
  local state
  state=$(awk '/^State:/ {print $2}' "/proc/$1/status" 2>/dev/null) && [ -n "$state" ] && [ "$state" != Z ]
}
gone() { ! runs "$1"; }
daemon_runs() { # NAME PIDFILE: the daemon itself, for pids are used again
  local pid
  [ -s "$2" ] && pid=$(cat "$2") && runs "$pid" && [ "$(cat "/proc/$pid/comm")" = "$1" ]
}

install_packages() {
  local wanted=(munge slurmctld slurmd slurm-client slurmdbd mariadb-server-core mariadb-client-core iproute2 util-linux)
  local missing=() package
  for package in "${wanted[@]}"; do
    [ "$(dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null)" = "ii " ] || missing+=("$package")
  done
  [ ${#missing[@]} -eq 0 ] && return 0
  say "apt-get install ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  apt-get -o DPkg::Lock::Timeout=300 -qq update >/dev/null
  # Nothing may start by itself; a policy that is there already stays.
  local ours=0
  if [ ! -e /usr/sbin/policy-rc.d ]; then
    printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
    chmod 755 /usr/sbin/policy-rc.d
    ours=1
  fi
  apt-get -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 install -y -qq --no-install-recommends "${missing[@]}" \
    >"$DIR/log/apt.txt" 2>&1 || fail "apt-get, see $DIR/log/apt.txt"
  [ $ours = 0 ] || rm -f /usr/sbin/policy-rc.d
}

write_configs() { # FOLDER
  # Job ids go on from the clock: those of a cluster that was here before do not come again.
  [ -s "$DIR/run/first_job_id" ] || echo $(($(date +%s) / 10 % 6000000 * 10 + 1)) >"$DIR/run/first_job_id"
  local node
  {
    echo "127.0.0.1 localhost"
    echo "$CONTROLLER $HOST"
    for node in $(nodes); do echo "$(address "$node") $node"; done
  } >"$1/hosts"
  {
    cat <<CONF
ClusterName=dev
SlurmctldHost=$HOST($CONTROLLER)
SlurmctldPort=$CONTROLLER_PORT
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# How long a requeued job waits before it may start again; 120 s by default.
AuthInfo=cred_expire=5
StateSaveLocation=$DIR/state
SlurmdSpoolDir=$DIR/spool/%n
SlurmctldPidFile=$DIR/run/slurmctld.pid
SlurmdPidFile=$DIR/run/slurmd.%n.pid
SlurmctldLogFile=$DIR/log/slurmctld.log
SlurmdLogFile=$DIR/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=2
# Without cgroups this is what ends a task that takes more than its --mem.
JobAcctGatherParams=OverMemoryKill
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=3000
MpiDefault=none
TmpFS=$DIR/tmp/%n
MailProg=/bin/true
ReturnToService=2
# How soon a crash is noticed; 300 s by default.
SlurmdTimeout=10
KillWait=5
JobRequeue=1
FirstJobId=$(cat "$DIR/run/first_job_id")
MaxArraySize=1001
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1
SlurmctldParameters=preempt_send_user_signal
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=$CONTROLLER
AccountingStoragePort=$ACCOUNTING_PORT
GresTypes=gpu
CONF
    for node in $(nodes); do
      echo "NodeName=$node NodeAddr=$(address "$node") NodeHostname=$node Port=$NODE_PORT CPUs=$NODE_CPUS" \
        "RealMemory=$NODE_MEM_MB Gres=gpu:$NODE_GPUS State=UNKNOWN"
    done
    echo "PartitionName=debug Nodes=ALL Default=YES DefaultTime=10 MaxTime=1-0 PriorityTier=5 PreemptMode=OFF State=UP"
    echo "PartitionName=low Nodes=ALL DefaultTime=10 MaxTime=1-0 PriorityTier=1 PreemptMode=REQUEUE GraceTime=15 State=UP"
    echo "PartitionName=high Nodes=ALL DefaultTime=10 MaxTime=1-0 PriorityTier=9 PreemptMode=OFF State=UP"
  } >"$1/slurm.conf"
  # Any character devices will do.
  echo "Name=gpu File=/dev/tty[1-$NODE_GPUS]" >"$1/gres.conf"
  cat >"$1/slurmdbd.conf" <<CONF
AuthType=auth/munge
DbdHost=$HOST
DbdAddr=$CONTROLLER
DbdPort=$ACCOUNTING_PORT
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$DATABASE_PORT
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct_db
LogFile=$DIR/log/slurmdbd.log
PidFile=$DIR/run/slurmdbd.pid
CONF
  chmod 600 "$1/slurmdbd.conf"
  cat >"$1/my.cnf" <<CONF
[mysqld]
user=root
datadir=$DIR/mysql
socket=$DIR/run/mysql.sock
pid-file=$DIR/run/mariadbd.pid
log-error=$DIR/log/mysql.log
init-file=$DIR/etc/init.sql
bind-address=127.0.0.1
port=$DATABASE_PORT
skip-name-resolve
skip-log-bin
performance_schema=OFF
innodb_buffer_pool_size=64M
innodb_log_file_size=64M
innodb_lock_wait_timeout=900
innodb_flush_log_at_trx_commit=0
innodb_doublewrite=0
CONF
  cat >"$1/init.sql" <<CONF
CREATE DATABASE IF NOT EXISTS slurm_acct_db;
CREATE USER IF NOT EXISTS slurm@'127.0.0.1' IDENTIFIED BY 'slurm';
GRANT ALL ON slurm_acct_db.* TO slurm@'127.0.0.1';
CONF
}

link_config() { # so that nobody needs SLURM_CONF; a config that is no link of ours stays
  if [ ! -e /etc/slurm/slurm.conf ] || [ -L /etc/slurm/slurm.conf ]; then
    mkdir -p /etc/slurm
    ln -sfn "$SLURM_CONF" /etc/slurm/slurm.conf
  fi
}

start_munge() {
  timeout 5 munge -n >/dev/null 2>&1 && return 0
  install -d -o munge -g munge -m 755 /run/munge
  if [ ! -s /etc/munge/munge.key ]; then
    (umask 077 && head -c 128 /dev/urandom >/etc/munge/munge.key)
    chown munge: /etc/munge/munge.key
  fi
  setpriv --reuid munge --regid munge --init-groups munged --force </dev/null >"$DIR/log/munged.txt" 2>&1 || fail munged
  within 10 munge -n || fail "munged does not answer"
}

start_network() {
  if ! ip link show $BRIDGE >/dev/null 2>&1; then
    ip link add $BRIDGE type bridge
    ip addr add "$CONTROLLER/24" dev $BRIDGE
    ip link set $BRIDGE up
  fi
  local node
  for node in $(nodes); do
    [ -e "/run/netns/salign-$node" ] && continue
    ip link del "salign-$node" 2>/dev/null || true # of a network that is going down still
    ip netns add "salign-$node"
    ip link add "salign-$node" type veth peer name eth0 netns "salign-$node"
    ip link set "salign-$node" master $BRIDGE up
    ip -n "salign-$node" link set lo up
    ip -n "salign-$node" addr add "$(address "$node")/24" dev eth0
    ip -n "salign-$node" link set eth0 up
  done
}

start_accounting() {
  if ! daemon_runs mariadbd "$DIR/run/mariadbd.pid"; then
    [ -d "$DIR/mysql/mysql" ] || mariadb-install-db --no-defaults --datadir="$DIR/mysql" --user=root --skip-test-db \
      --auth-root-authentication-method=normal --skip-name-resolve >"$DIR/log/mysql-install.txt" 2>&1 ||
      fail mariadb-install-db
    setsid mariadbd --defaults-file="$DIR/etc/my.cnf" </dev/null >/dev/null 2>&1 &
    within 60 mariadb --no-defaults -h127.0.0.1 -P$DATABASE_PORT -uslurm -pslurm -e 'select 1' slurm_acct_db ||
      fail "mariadbd does not answer"
  fi
  if ! daemon_runs slurmdbd "$DIR/run/slurmdbd.pid"; then
    slurmdbd </dev/null >/dev/null 2>&1 || fail slurmdbd
    within 60 sacctmgr -n list cluster || fail "slurmdbd does not answer"
  fi
  sacctmgr -n list cluster format=cluster | grep -qw dev || sacctmgr -i add cluster dev >/dev/null
}

start_node() { # NODE
  daemon_runs slurmd "$DIR/run/slurmd.$1.pid" && return 0
  mkdir -p "$DIR/spool/$1" "$DIR/tmp/$1"
  nsenter "--net=/run/netns/salign-$1" unshare --uts --mount --propagation private bash -c '
    hostname "$1" && mount --bind "$2/etc/hosts" /etc/hosts && mount -t tmpfs -o size=1g tmpfs /dev/shm &&
    readlink /proc/self/ns/uts >"$2/run/uts.$1" && cd / && exec env -i PATH="$PATH" SLURM_CONF="$SLURM_CONF" slurmd -N "$1"
    ' _ "$1" "$DIR" </dev/null >>"$DIR/log/slurmd.$1.txt" 2>&1 || fail "slurmd of $1, see $DIR/log/slurmd.$1.txt"
}

all_up() { [ "$(sinfo -h -p debug -t idle,mix,alloc,comp -o %D | awk '{n += $1} END {print n + 0}')" = "$NUM_NODES" ]; }
controller_answers() { timeout 5 scontrol ping | grep -q 'is UP'; }

up() {
  local descriptor
  for descriptor in /proc/self/fd/*; do # a daemon that kept the caller's would hold its locks and pipes for ever
    descriptor=${descriptor##*/}
    case $descriptor in 0 | 1 | 2 | 255) ;; *) eval "exec $descriptor>&-" ;; esac
  done
  [ "$(id -u)" = 0 ] || { echo "error: the devcluster needs root" >&2; exit 2; }
  command -v apt-get >/dev/null || { echo "error: the devcluster needs Debian's apt-get" >&2; exit 2; }
  mkdir -p "$DIR"/{etc,run,log,state,spool}
  install_packages
  local new=$DIR/etc.new
  rm -rf "$new"
  mkdir -p "$new"
  write_configs "$new"
  if ! diff -rq "$DIR/etc" "$new" >/dev/null 2>&1; then
    if daemon_runs slurmctld "$DIR/run/slurmctld.pid"; then down; fi
    rm -rf "$DIR/etc"
    cp -a "$new" "$DIR/etc"
  fi
  link_config
  if daemon_runs slurmctld "$DIR/run/slurmctld.pid" && controller_answers && all_up; then
    say "is up already: $(sinfo -h -p debug -o '%D nodes %T %N' | paste -sd';')"
    return 0
  fi
  start_munge
  start_network
  start_accounting
  daemon_runs slurmctld "$DIR/run/slurmctld.pid" || slurmctld </dev/null >/dev/null 2>&1 || fail slurmctld
  within 60 controller_answers || fail "slurmctld does not answer"
  local node
  for node in $(nodes); do start_node "$node"; done
  within 60 all_up || fail "nodes are not up: $(sinfo -h -o '%N %T %E')"
  timeout 60 srun -p high -N "$NUM_NODES" -t 1 true || fail "srun on all nodes"
  say "up: $(sinfo -h -p debug -o '%D nodes %N' | paste -sd';')"
}

node_processes() { # NODE: all in the namespace that was noted when it started; never the host's own
  local namespace process checked=
  namespace=$(cat "$DIR/run/uts.$1" 2>/dev/null) || return 0
  [ "$namespace" != "$(readlink /proc/self/ns/uts)" ] || return 0
  for process in /proc/[0-9]*; do
    [ "$(readlink "$process/ns/uts" 2>/dev/null)" = "$namespace" ] || continue
    if [ -z "$checked" ]; then # numbers of namespaces are used again
      [ "$(nsenter "--uts=$process/ns/uts" hostname 2>/dev/null)" = "$1" ] || return 0
      checked=1
    fi
    echo "${process#/proc/}"
  done
}

crash() { # NODE
  local processes
  while processes=$(node_processes "$1") && [ -n "$processes" ]; do # one that is killed may have started another
    # shellcheck disable=SC2086
    kill -9 $processes 2>/dev/null || true
    sleep 0.1
  done
  rm -f "$DIR/run/slurmd.$1.pid" "$DIR/run/uts.$1"
}

down() {
  local node name pid namespace
  if controller_answers; then scancel --user=root 2>/dev/null || true; fi
  for node in $(ls "$DIR/spool" 2>/dev/null); do crash "$node"; done
  for name in slurmctld slurmdbd mariadbd; do
    daemon_runs $name "$DIR/run/$name.pid" || continue
    pid=$(cat "$DIR/run/$name.pid")
    kill "$pid" 2>/dev/null || true
    within 15 gone "$pid" || kill -9 "$pid" 2>/dev/null || true
    rm -f "$DIR/run/$name.pid"
  done
  for namespace in /run/netns/salign-n*; do
    [ -e "$namespace" ] && ip netns del "${namespace#/run/netns/}"
  done
  ip link del $BRIDGE 2>/dev/null || true
  if [ "$(readlink /etc/slurm/slurm.conf 2>/dev/null)" = "$SLURM_CONF" ]; then rm -f /etc/slurm/slurm.conf; fi
  say "down (munged is left running)"
}

case "${1:-}" in
  up) up ;;
  down) down ;;
  crash) crash "${2:?a node, such as n2}" ;;
  revive)
    start_node "${2:?a node, such as n2}"
    scontrol update nodename="$2" state=resume 2>/dev/null || true
    within 60 all_up || fail "$2 is not back"
    ;;
  status) sinfo -N -l && squeue -a ;;
  *)
    sed -n '2,13s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac
