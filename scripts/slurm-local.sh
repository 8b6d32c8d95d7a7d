#!/usr/bin/env bash
# A whole Slurm cluster on the loopback of one host, for tests: no systemd, no root daemon left behind.
#
# usage: slurm-local.sh COMMAND [DIR …]
#   install                     fetch the Debian packages that are missing (root)
#   start DIR                   lay out DIR on first use, start what is not running, print the line to eval
#   env DIR                     print that line only: export SLURM_CONF=…
#   status DIR                  name what does not answer; exit status 0 when everything does
#   kill DIR DAEMON [-SIGNAL]   stop slurmctld, slurmdbd or slurmd[N], and leave it down
#   restart DIR DAEMON [-SIGNAL]
#   stop DIR                    end the daemons and job steps of this DIR, and nothing else
#
# Read from the environment when DIR is laid out:
#   SLURM_LOCAL_ACCT=dbd|none   with accounting (slurmdbd and a private mariadbd, so sacct is real) or without [dbd]
#   SLURM_LOCAL_NODES=N         slurmd processes [1]
#   SLURM_LOCAL_CPUS=N  SLURM_LOCAL_MEM=MB  SLURM_LOCAL_GPUS=N    what a node claims to have [8, 8000, 2]
#   SLURM_LOCAL_PORT=N          first of 40 loopback ports in a row [26900]
#   SLURM_LOCAL_GRACE=S         time a preempted job has before it is killed (looked at every 30 s) [0]
#   SLURM_LOCAL_REQUEUE=S       time a requeued job waits [5]
#   SLURM_LOCAL_EXTRA=LINES     further lines of slurm.conf
set -u
export LC_ALL=C
PATH=$PATH:/usr/sbin:/sbin
accounting=${SLURM_LOCAL_ACCT:-dbd}

fail() { printf 'slurm-local: %s\n' "$*" >&2; exit 1; }
tail_of() { tail -n 4 "$@" 2>/dev/null; }

until_ok() {  # SECONDS COMMAND…: try it until it succeeds or time is up
  local deadline=$((SECONDS + $1)); shift
  while ! "$@" >/dev/null 2>&1; do
    ((SECONDS < deadline)) || return 1
    sleep 0.1
  done
}

# --- processes ------------------------------------------------------------------------------------------------------
# A pid file is believed only while its process bears the daemon's name: pids are given out again.
alive() {  # NAME [PROGRAM]: print the pid of run/NAME.pid if it runs PROGRAM
  local pid program=${2:-$1}
  pid=$(tr -dc 0-9 2>/dev/null <"$root/run/$1.pid") && [[ -n $pid ]] || return 1
  [[ $(cat "/proc/$pid/comm" 2>/dev/null) == "$program" ]] && echo "$pid"
}
gone() { [[ ! -d /proc/$1 ]]; }
end() {  # SIGNAL NAME [PROGRAM]: signal it, wait, make sure
  local pid signal=$1; shift
  pid=$(alive "$@") || return 0
  kill "$signal" "$pid" 2>/dev/null
  until_ok 8 gone "$pid" || kill -KILL "$pid" 2>/dev/null
  rm -f "$root/run/$1.pid"
}

# --- packages -------------------------------------------------------------------------------------------------------
install_packages() {
  local package missing=() wanted=(munge slurmctld slurmd slurm-client)
  [[ $accounting == dbd ]] && wanted+=(slurmdbd mariadb-server-core)
  for package in "${wanted[@]}"; do
    [[ $(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || missing+=("$package")
  done
  ((${#missing[@]})) || return 0
  export DEBIAN_FRONTEND=noninteractive
  apt-get -qq update && apt-get -qq -y --no-install-recommends install "${missing[@]}" >/dev/null
}

# --- layout ---------------------------------------------------------------------------------------------------------
lay_out() {
  local nodes=${SLURM_LOCAL_NODES:-1} cpus=${SLURM_LOCAL_CPUS:-8} memory=${SLURM_LOCAL_MEM:-8000}
  local gpus=${SLURM_LOCAL_GPUS:-2} port=${SLURM_LOCAL_PORT:-26900} grace=${SLURM_LOCAL_GRACE:-0}
  local user host address n
  [[ $root =~ [[:space:]%,=] ]] && fail "slurm.conf cannot hold a path with a space, %, comma or = ($root)"
  user=$(id -un) host=$(hostname -s 2>/dev/null || hostname)
  # With No…InAddrAny Slurm binds what the host's own name resolves to; anything but loopback would be open to others.
  address=$(getent ahostsv4 "$host" | awk 'NR == 1 {print $1}')
  [[ $address == 127.* ]] || fail "'$host' resolves to '${address:-nothing}'; put '127.0.0.1 $host' first into /etc/hosts"
  umask 022
  mkdir -p "$root"/{etc,run,log,state,spool,gpu,munge}
  chmod 700 "$root/munge"
  (umask 077; head -c 1024 /dev/urandom >"$root/munge/key")

  # File= must be a character device: otherwise GPUs are counted, but CUDA_VISIBLE_DEVICES is never set. Root makes
  # twins of /dev/null; without root some harmless devices lend their names.
  local lent=(null zero full random urandom tty ptmx)
  : >"$root/etc/gres.conf"
  for ((n = 0; n < gpus; n++)); do
    rm -f "$root/gpu/nvidia$n"
    if mknod "$root/gpu/nvidia$n" c 1 3 2>/dev/null; then echo "Name=gpu File=$root/gpu/nvidia$n"
    else echo "Name=gpu File=/dev/${lent[n]}"; fi >>"$root/etc/gres.conf"
  done
  # Without this file slurmd looks for a cgroup plugin and gives up.
  printf '%s\n' CgroupPlugin=cgroup/v1 ConstrainCores=no ConstrainDevices=no ConstrainRAMSpace=no >"$root/etc/cgroup.conf"
  slurm_conf >"$root/etc/slurm.conf"
  if [[ $accounting == dbd ]]; then (umask 077; dbd_conf >"$root/etc/slurmdbd.conf"); fi
  echo "$accounting $nodes $port" >"$root/etc/layout"
}

slurm_conf() {
  cat <<CONF
ClusterName=local
SlurmctldHost=$host($address)
SlurmUser=$user
SlurmdUser=$user
SlurmctldPort=$port
SlurmdPort=$((port + 10))
SrunPortRange=$((port + 1000))-$((port + 1999))
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
AuthType=auth/munge
CredType=cred/munge
# cred_expire is also how long a requeued job is held back (120 s if unsaid)
AuthInfo=socket=$root/run/munge.sock,cred_expire=${SLURM_LOCAL_REQUEUE:-5}
StateSaveLocation=$root/state
SlurmdSpoolDir=$root/spool/%n
SlurmctldPidFile=$root/run/slurmctld.pid
SlurmdPidFile=$root/run/%n.pid
SlurmctldLogFile=$root/log/slurmctld.log
SlurmdLogFile=$root/log/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=100
SlurmdParameters=config_overrides
GresTypes=gpu
# decide often: tests wait for nothing else
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=2,sched_min_interval=0,batch_sched_delay=0,preempt_youngest_first
PriorityType=priority/basic
InactiveLimit=0
KillWait=5
MinJobAge=3600
SlurmctldTimeout=30
SlurmdTimeout=30
BatchStartTimeout=30
MessageTimeout=20
ReturnToService=2
TreeWidth=2
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobCompType=jobcomp/filetxt
JobCompLoc=$root/log/jobcomp.txt
CONF
  if [[ $accounting == dbd ]]; then
    printf '%s\n' AccountingStorageType=accounting_storage/slurmdbd "AccountingStorageHost=$address" \
      "AccountingStoragePort=$((port + 1))" "AccountingStoragePass=$root/run/munge.sock" AccountingStorageTRES=gres/gpu
  else
    echo AccountingStorageType=accounting_storage/none
  fi
  local gres=
  ((gpus)) && gres=Gres=gpu:$gpus
  for ((n = 0; n < nodes; n++)); do
    echo "NodeName=node$n NodeHostname=$host NodeAddr=$address Port=$((port + 10 + n)) CPUs=$cpus RealMemory=$memory $gres State=UNKNOWN"
  done
  local common="Nodes=ALL MaxTime=INFINITE DefaultTime=60"
  echo "PartitionName=cpu $common Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=$grace"
  echo "PartitionName=gpu $common PriorityTier=1 PreemptMode=REQUEUE GraceTime=$grace"
  echo "PartitionName=urgent $common PriorityTier=10 PreemptMode=OFF"
  printf '%s\n' "${SLURM_LOCAL_EXTRA:-}"
}

dbd_conf() {
  cat <<CONF
AuthType=auth/munge
AuthInfo=socket=$root/run/munge.sock
DbdHost=$host
DbdAddr=$address
DbdPort=$((port + 1))
CommunicationParameters=NoInAddrAny
SlurmUser=$user
PidFile=$root/run/slurmdbd.pid
LogFile=$root/log/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$((port + 2))
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct_db
CONF
}

open_dir() {  # DIR: it was laid out before
  [[ -s $1/etc/layout ]] || fail "there is no cluster in '$1'"
  root=$(cd "$1" && pwd -P)
  read -r accounting nodes port <"$root/etc/layout"
  export SLURM_CONF=$root/etc/slurm.conf
}

# --- daemons: each function does nothing when its daemon runs -----------------------------------------------------------
up_munged() {
  alive munged >/dev/null && return
  rm -f "$root"/run/munge.sock*
  munged --force --socket="$root/run/munge.sock" --key-file="$root/munge/key" --pid-file="$root/run/munged.pid" \
    --seed-file="$root/munge/seed" --log-file="$root/log/munged.log" --num-threads=2 &>>"$root/log/munged.out" </dev/null
  until_ok 10 munge -n -S "$root/run/munge.sock" || fail "munged: $(tail_of "$root"/log/munged.*)"
}

up_mariadbd() {
  alive mariadbd >/dev/null && return
  local options=(--no-defaults "--datadir=$root/mysql" "--user=$(id -un)" --skip-log-bin --performance-schema=OFF
    --innodb-buffer-pool-size=64M --innodb-log-file-size=16M --innodb-flush-log-at-trx-commit=0 --innodb-lock-wait-timeout=900)
  if [[ ! -e $root/mysql/ready ]]; then
    rm -rf "${root:?}/mysql"
    mkdir -p "$root/mysql/mysql"
    local who
    {
      echo 'USE mysql;'
      cat /usr/share/mysql/mysql_system_tables{,_data}.sql
      echo 'FLUSH PRIVILEGES;'
      for who in 127.0.0.1 localhost; do  # --bootstrap takes one statement a line
        echo "CREATE USER 'slurm'@'$who' IDENTIFIED BY 'slurm';"
        echo "GRANT ALL ON slurm_acct_db.* TO 'slurm'@'$who';"
      done
    } | mariadbd "${options[@]}" --bootstrap --log-warnings=0 &>"$root/log/mariadb-bootstrap.log" \
      || fail "mariadbd --bootstrap: $(tail_of "$root/log/mariadb-bootstrap.log")"
    touch "$root/mysql/ready"
  fi
  setsid mariadbd "${options[@]}" --bind-address=127.0.0.1 --port=$((port + 2)) --socket="$root/run/mysql.sock" \
    --pid-file="$root/run/mariadbd.pid" &>>"$root/log/mariadbd.log" </dev/null &
  until_ok 30 bash -c "exec 3<>/dev/tcp/127.0.0.1/$((port + 2)) && [[ -s '$root/run/mariadbd.pid' ]]" \
    || fail "mariadbd: $(tail_of "$root/log/mariadbd.log")"
}

up_slurmdbd() {
  alive slurmdbd >/dev/null && return
  slurmdbd &>>"$root/log/slurmdbd.out" </dev/null || fail "slurmdbd: $(tail_of "$root/log/slurmdbd.out")"
  until_ok 30 sacctmgr -n list cluster || fail "slurmdbd: $(tail_of "$root/log/slurmdbd.log")"
  [[ -n $(sacctmgr -nP list cluster format=cluster) ]] || sacctmgr -iQ add cluster local >/dev/null
}

ctld_answers() { scontrol ping 2>/dev/null | grep -q ' UP'; }
up_slurmctld() {
  alive slurmctld >/dev/null && return
  slurmctld -f "$SLURM_CONF" &>>"$root/log/slurmctld.out" </dev/null || fail "slurmctld: $(tail_of "$root/log/slurmctld.out")"
  until_ok 20 ctld_answers || fail "slurmctld: $(tail_of "$root/log/slurmctld.log")"
}

up_slurmd() {  # [N]: one of them, or all
  local n
  for n in ${1:-$(seq 0 $((nodes - 1)))}; do
    alive "node$n" slurmd >/dev/null && continue
    mkdir -p "$root/spool/node$n"
    slurmd -N "node$n" -f "$SLURM_CONF" &>>"$root/log/node$n.out" </dev/null || fail "slurmd: $(tail_of "$root/log/node$n.out")"
  done
}

nodes_ready() { (($(sinfo -hN -p cpu -t idle,mix,alloc,comp -o %n 2>/dev/null | wc -l) >= nodes)); }

# --- commands -------------------------------------------------------------------------------------------------------
start() {
  mkdir -p "$1" || fail "cannot make '$1'"
  root=$(cd "$1" && pwd -P)
  [[ -s $root/etc/layout ]] || lay_out
  open_dir "$root"
  up_munged
  if [[ $accounting == dbd ]]; then up_mariadbd; up_slurmdbd; fi
  up_slurmctld
  up_slurmd
  if ! until_ok 30 nodes_ready; then
    scontrol update nodename=ALL state=resume 2>/dev/null
    until_ok 15 nodes_ready || fail "nodes do not come up: $(sinfo -hN; tail_of "$root"/log/node*.log)"
  fi
  echo "slurm-local: up after $SECONDS s, accounting: $accounting" >&2
  echo "export SLURM_CONF=$SLURM_CONF"
}

report() {
  local down=0
  munge -n -S "$root/run/munge.sock" &>/dev/null || { echo "munged does not answer"; down=1; }
  if [[ $accounting == dbd ]]; then sacctmgr -n list cluster &>/dev/null || { echo "slurmdbd does not answer"; down=1; }; fi
  if ! ctld_answers; then echo "slurmctld does not answer"; down=1
  elif ! nodes_ready; then sinfo -N; down=1; fi
  ((down)) || echo up
  return $down
}

stop() {
  local n pid
  if alive slurmctld >/dev/null && ctld_answers; then
    scancel --quiet --user="$(id -un)" 2>/dev/null
    until_ok 8 bash -c '[[ -z $(squeue -h -t R,CG,S -o %i) ]]'
  fi
  for ((n = 0; n < nodes; n++)); do end -TERM "node$n" slurmd & done
  end -TERM slurmctld &
  wait
  # job steps outlive slurmd: ours are those that were started with our SLURM_CONF
  for pid in $(pgrep -x slurmstepd; pgrep -x slurm_script; pgrep -x srun); do
    tr '\0' '\n' 2>/dev/null <"/proc/$pid/environ" | grep -qxF "SLURM_CONF=$SLURM_CONF" && kill -KILL "$pid" 2>/dev/null
  done
  end -TERM slurmdbd
  end -TERM mariadbd &
  end -TERM munged &
  wait
}

one() {  # kill|restart DAEMON [-SIGNAL]
  local n signal=${3:--TERM}
  case $2 in
    slurmctld | slurmdbd) end "$signal" "$2"; if [[ $1 == restart ]]; then "up_$2"; until_ok 30 nodes_ready; fi ;;
    slurmd*) n=${2#slurmd} n=${n:-0}; end "$signal" "node$n" slurmd; if [[ $1 == restart ]]; then up_slurmd "$n"; fi ;;
    *) fail "'$2' is no daemon; it may be slurmctld, slurmdbd, slurmd or slurmdN" ;;
  esac
}

case ${1:-} in
  install) install_packages ;;
  start) [[ -n ${2:-} ]] || fail "start needs a DIR"; start "$2" ;;
  env) open_dir "${2:-}"; echo "export SLURM_CONF=$SLURM_CONF" ;;
  status) open_dir "${2:-}"; report ;;
  stop) [[ -s ${2:-}/etc/layout ]] || exit 0; open_dir "$2"; stop ;;
  kill | restart) open_dir "${2:-}"; one "$1" "${3:-}" "${4:-}" ;;
  *) sed -n '2,21p' "$0" | cut -c 3-; exit 2 ;;
esac
