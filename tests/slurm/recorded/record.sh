#!/usr/bin/env bash
# record.sh OUT: what the installed Slurm answers to the commands of launch/slurm/scheduler.cc, one file per command in
# OUT. Starts a cluster of four nodes on this host; with mariadbd and slurmdbd installed also one with accounting, whose
# files begin with acct-. Runs as root, because some answers are to a user who may not ask. Takes four minutes.
set -euo pipefail
out=$(realpath "$1"); mkdir -p "$out"; cd /tmp
work=$(mktemp -d); chmod 755 "$work"; host=$(hostname -s)
export LC_ALL=C TZ=UTC SLURM_TIME_FORMAT=%s SLURM_BITSTR_LEN=0
separator='<~|~>'
format=
for letter in A F K u T r P q a D N B S e l V Q E x j; do format+="%$letter$separator"; done

# record NAME COMMAND...: argv, exit code and both outputs, each with its length.
record() {
  local name=$1 code=0; shift
  "$@" > "$work/out" 2> "$work/err" || code=$?
  if [ "$1" = setpriv ]; then shift 4; fi
  { printf 'argv %d\n' $#; printf '%s\n' "$@"; printf 'exit %d\noutput %d\n' "$code" "$(stat -c %s "$work/out")"
    cat "$work/out"; printf '\nerrors %d\n' "$(stat -c %s "$work/err")"; cat "$work/err"; echo; } > "$out/$name"
}
stranger=(setpriv --reuid=65534 --regid=65534 --clear-groups)
job() { record "$1" scontrol -o -a show job "$2"; }
submit() { sbatch --parsable -o /dev/null "$@"; }
await() {  # ID STATE...
  local id=$1 state; shift
  for _ in $(seq 900); do
    state=$(scontrol -o show job "$id" | grep -o ' JobState=[A-Z_]*' | head -1)
    for wanted in "$@"; do if [ "$state" = " JobState=$wanted" ]; then return; fi; done
    sleep 0.2
  done
  echo "job $id is $state, not $*" >&2; return 1
}

# belongs PROCESS VARIABLE: whether its environment has it.
belongs() { grep -qzx "$2" "$1/environ" 2>/dev/null; }
kill_node() {  # NODE JOB: as if the machine had lost its power.
  local process
  kill -9 "$(cat "$work/plain/slurmd-$1.pid")"
  for process in /proc/[0-9]*; do
    if belongs "$process" "SLURM_CONF=$work/.*" && belongs "$process" "SLURMD_NODENAME=$1" &&
      belongs "$process" "SLURM_JOB_ID=$2"
    then
      kill -9 "$(cut -d' ' -f4 "$process/stat")" "${process#/proc/}" 2>/dev/null || true
    fi
  done
}

start() {  # NAME PORT FURTHER-LINES
  local dir=$work/$1 port=$2; mkdir -p "$dir"/{state,spool,log}; chmod 755 "$dir"
  cat > "$dir/slurm.conf" <<C
ClusterName=$1
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmUser=root
SlurmdUser=root
AuthType=auth/none
AuthInfo=cred_expire=5
CredType=cred/none
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool/%n
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd-%n.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/slurmd-%n.log
MailProg=/bin/true
MpiDefault=none
SwitchType=switch/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
ReturnToService=1
SlurmdTimeout=15
KillWait=5
MinJobAge=3600
NodeName=n[1-4] NodeHostname=$host NodeAddr=127.0.0.1 Port=[$((port + 1))-$((port + 4))] CPUs=4 RealMemory=1000
NodeName=f[08-12] NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + 9)) CPUs=4 RealMemory=1000 State=DOWN Reason="not built"
PartitionName=main Nodes=n[1-4] Default=YES MaxTime=20:00:00 DefaultTime=00:10:00 OverSubscribe=EXCLUSIVE State=UP
PartitionName=big Nodes=f[08-12] MaxTime=2-00:00:00 MinNodes=2 MaxNodes=4 AllowAccounts=alpha,beta AllowQos=normal,long
PartitionName=closed Nodes=n[3-4] MaxTime=UNLIMITED State=DOWN Hidden=YES OverTimeLimit=UNLIMITED DenyAccounts=gamma
$3
C
  export SLURM_CONF=$dir/slurm.conf
  setsid slurmctld -D > "$dir/log/out" 2>&1 &
  for node in n1 n2 n3 n4; do setsid slurmd -D -N $node > "$dir/log/$node.out" 2>&1 & done
  until [ "$(sinfo -h -p main -t idle -o %D 2>/dev/null)" = 4 ]; do sleep 0.2; done
}
stop() {
  for file in "$work"/*/*.pid; do if [ -e "$file" ]; then kill "$(cat "$file")" 2>/dev/null || true; fi; done
  sleep 3
  # Whatever a node still runs has our SLURM_CONF in its environment.
  for process in /proc/[0-9]*; do
    if belongs "$process" "SLURM_CONF=$work/.*" && [ "${process#/proc/}" != $$ ]
    then kill -9 "${process#/proc/}" 2>/dev/null || true; fi
  done
  rm -rf "$work"
}
trap stop EXIT

start plain 38817 AccountingStorageType=accounting_storage/none
record config scontrol show config
record partitions scontrol -o -a show partition
# 1 runs, 2 waits for it, 3 is held, 4 an array of which one runs, 5 cannot run, 6 has a name.
submit -N2 -t 30 -J run-a --wrap 'sleep 600'
submit -N2-3 -t 1-02:30:00 -J run-a --dependency=afterany:1,singleton --exclude=n1,n3 --wrap 'sleep 600'
submit -N4 -H -J 'held, one' --wrap true
submit -N1 --array=0-53%1 -t 5 -J arr -w n4 --wrap 'sleep 600'
submit -N4 -A alpha -t UNLIMITED -p big -J never --wrap true
submit -N1 -J $'evil UserId=x(0) JobState=FAILED\nJobId=1 JobName=z UserId=root(0) \x1f<~|>' -d afterany:1 --wrap true
await 1 RUNNING; await 7 RUNNING
record jobs squeue -h -a --noconvert --user=0 -t all -o "$format"
job running 1; job pending 2; job held 3; job array 4; job array-pending 4_3; job array-running 4_0; job never 5; job unknown-element 4_99
job evil-name 6
record array-asked squeue -h -a -t all -j 4 -o "%A$separator%j$separator"
record evil-name-asked squeue -h -a -t all -j 6 -o "%A$separator%j$separator"
scancel 2 4 5 6

record submitted sbatch --parsable -N1 -J fails -o /dev/null --wrap 'exit 3'   # 8
await 8 FAILED; job failed 8
submit -N1 -t 5 -J 'done' --wrap true; await 9 COMPLETED; job completed 9
scancel 1; await 1 CANCELLED; job cancelled 1
submit -N4 -t 20 --no-kill -J lost --wrap 'srun --no-kill sleep 600'; await 10 RUNNING; sleep 2
lost=$(scontrol -o show job 10 | grep -o 'BatchHost=[^ ]*' | cut -d= -f2)
kill_node "$lost" 10
until [ "$(squeue -h -j 10 -o %D)" = 3 ]; do sleep 1; done
job batch-host-lost 10
record nodes sinfo -h -a -N -o "%N$separator%T$separator%E$separator"
scancel 10; await 10 CANCELLED FAILED; job batch-host-lost-cancelled 10
setsid slurmd -D -N "$lost" > "$work/plain/log/$lost.out" 2>&1 &
until [ "$(sinfo -h -p main -t idle -o %D)" = 4 ]; do sleep 1; done
submit -N1 -t 5 --no-requeue -w n2 -J node-fails --wrap 'sleep 600'; await 11 RUNNING; sleep 1
submit -N1-2 -t 5 --requeue -w n3 --exclude=n4 -J again --wrap 'sleep 600'; await 12 RUNNING; sleep 1
submit -N1 -t 1 -w n4 -J slow --wrap 'sleep 600'; await 13 RUNNING
scontrol update NodeName=n[2-3] State=DOWN Reason='a | b <~|> c'; await 11 NODE_FAIL; await 12 PENDING
job node-failed 11; job requeued 12
scontrol update NodeName=n2 State=RESUME; scontrol update NodeName=n3 State=DRAIN Reason='bad memory'
record nodes-drained sinfo -h -a -N -o "%N$separator%T$separator%E$separator"
"${stranger[@]}" sbatch --parsable -o /dev/null -t 10 -N1 -w n3 -J not-ours --wrap true  # 14

record unknown-job scontrol -o -a show job 99999
record unknown-name squeue -h -a -t all -j 99999 -o "%A$separator%j$separator"
record unknown-hold scontrol hold 99999
record unknown-cancel scancel 99999
# An ordinary user may change a pending job so.
own() { record "$1" "${stranger[@]}" scontrol "${@:2}"; }
own hold hold 14; own release release 14
own exclude update JobId=14 'ExcNodeList=n[1-2,4]'; own exclude-none update JobId=14 ExcNodeList=
own exclude-unknown update JobId=14 ExcNodeList=zz9
own nodes-range update JobId=14 NumNodes=2-4 NumTasks=2 NumCPUs=2; job nodes-range-set 14
own limit update JobId=14 TimeLimit=0-02:00:00; own limit-too-long update JobId=14 TimeLimit=9-00:00:00
own dependency update JobId=14 Dependency=afterany:12; own dependency-none update JobId=14 Dependency=
own dependency-wrong update JobId=14 Dependency=nonsense
record stranger-updates "${stranger[@]}" scontrol update JobId=3 ExcNodeList=n1
record stranger-cancels "${stranger[@]}" scancel 3
record stranger-requeues "${stranger[@]}" scontrol requeue 12
own requeue-pending requeue 14
submit -N1 -t 5 -w n1 -J by-hand --wrap 'trap "" TERM; sleep 600 & wait; sleep 600'; await 15 RUNNING; sleep 1
record requeue-running scontrol requeue 15; sleep 1; job requeued-by-hand 15
record hold-ended scontrol hold 9
record cancel-ended scancel 9
record exclude-ended scontrol update JobId=9 ExcNodeList=n1
record cancel-named scancel --user=0 --state=PENDING '--name=held, one'; await 3 CANCELLED
record refused-partition sbatch --parsable -p nope --wrap true
record refused-nodes sbatch --parsable -N0 --wrap true
record refused-option sbatch --parsable --frobnicate --wrap true
record refused-dependency sbatch --parsable -d afterany:abc --wrap true
record refused-memory sbatch --parsable --mem=100G --wrap true
record refused-file sbatch --parsable /nowhere/job.sh
await 13 TIMEOUT; job timed-out 13
record no-qos sacctmgr -nP show qos \
  format=Name,Priority,MaxWall,MaxTRES,MaxTRESPU,MaxJobsPU,MaxSubmitPU,GrpTRES,Flags,PreemptMode
history=(sacct -n -P -X -a --noconvert -S 1970-01-02T00:00:00 \
  '--format=JobIDRaw,NNodes,State,ExitCode,Submit,Eligible,Start,End,TimelimitRaw')
record no-history "${history[@]}"
kill "$(cat "$work/plain/slurmctld.pid")"; while [ -e "$work/plain/slurmctld.pid" ]; do sleep 0.2; done
record away-job scontrol -o -a show job 9
record away-jobs squeue -h -a --noconvert --user=0 -t all -o "$format"
record away-submit sbatch --parsable -N1 --wrap true
record away-cancel scancel 9
record away-nodes sinfo -h -a -N -o "%N$separator%T$separator%E$separator"
record away-update scontrol update JobId=9 ExcNodeList=n1
SLURM_CONF=/nowhere/slurm.conf record no-cluster squeue -h -a --noconvert --user=0 -t all -o "$format"

if ! command -v mariadbd slurmdbd > /dev/null; then echo "no mariadbd or slurmdbd: no acct-*"; exit; fi
mkdir "$work/acct"
mariadb-install-db --no-defaults --datadir="$work/db" --auth-root-authentication-method=normal --user=root \
  --skip-test-db > /dev/null 2>&1
setsid mariadbd --no-defaults --user=root --datadir="$work/db" --socket="$work/db/socket" --port=38906 \
  --bind-address=127.0.0.1 --pid-file="$work/acct/mariadbd.pid" > "$work/db.log" 2>&1 &
until [ -S "$work/db/socket" ]; do sleep 0.2; done
for at in localhost 127.0.0.1; do
  mariadb --no-defaults -S "$work/db/socket" -u root \
    -e "create user slurm@'$at' identified by 'x'; grant all on *.* to slurm@'$at'"
done
printf '%s\n' AuthType=auth/none DbdHost=localhost DbdAddr=127.0.0.1 DbdPort=38919 SlurmUser=root \
  StorageType=accounting_storage/mysql StorageHost=127.0.0.1 StoragePort=38906 StorageUser=slurm StoragePass=x \
  StorageLoc=acct LogFile="$work/acct/dbd.log" PidFile="$work/acct/slurmdbd.pid" > "$work/acct/slurmdbd.conf"
chmod 600 "$work/acct/slurmdbd.conf"
SLURM_CONF=$work/acct/slurm.conf setsid slurmdbd -D > "$work/acct/dbd.out" 2>&1 &
until [ -e "$work/acct/slurmdbd.pid" ]; do sleep 0.2; done; sleep 1
start acct 39817 "AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=38919
AccountingStorageEnforce=associations,limits,qos,safe
AccountingStorageTRES=gres/gpu
EnforcePartLimits=ALL"
for command in 'add account alpha Cluster=acct' 'add user root Account=alpha Cluster=acct' 'add qos long' \
  'modify qos long set MaxWall=4-04:00:00 MaxTRES=node=3,gres/gpu=64 MaxTRESPerUser=node=32,gres/gpu=128
   MaxJobsPerUser=4 MaxSubmitJobsPerUser=3 GrpTRES=node=1024 Priority=10 Flags=DenyOnLimit PreemptMode=requeue' \
  'modify user where name=root set qos=normal,long'; do
  # shellcheck disable=SC2086  # Words.
  sacctmgr -i $command > /dev/null || true
done
record acct-qos sacctmgr -nP show qos \
  format=Name,Priority,MaxWall,MaxTRES,MaxTRESPU,MaxJobsPU,MaxSubmitPU,GrpTRES,Flags,PreemptMode
record acct-config scontrol show config
record acct-refused-nodes sbatch --parsable -N100 --wrap true
record acct-refused-limit sbatch --parsable -t 3-00:00:00 --wrap true
record acct-refused-submit sbatch --parsable --array=0-20 --qos=long --wrap true
record acct-refused-account sbatch --parsable -A nobody --wrap true
record acct-refused-qos sbatch --parsable --qos=xyz --wrap true
submit -N2 -t 5 --wrap 'sleep 1; exit 3'; submit -N4 -t 10 --wrap 'sleep 2'; submit -N1 --begin=now+1hour --wrap true
submit -N3 -t 6:00:00 --qos=long -A alpha --wrap 'sleep 300'; submit -N4 --wrap true; submit -N1 -p closed --wrap true
await 4 RUNNING; sleep 1; scancel 5; scontrol update NodeName=n1 State=DOWN Reason=test; sleep 4
record acct-history "${history[@]}"
record acct-jobs squeue -h -a --noconvert --user=0 -t all -o "$format"
record acct-history-closed "${history[@]}" --partition=closed
for command in 'modify account alpha set MaxWall=10:00:00 MaxJobs=7' 'add account beta Cluster=acct' \
  'add user root Account=beta Cluster=acct Partition=main' 'modify user where name=root account=beta set qos=normal,long' \
  'modify user where name=root account=beta set DefaultQOS=long MaxTRES=node=2,cpu=64 MaxSubmitJobs=1 GrpTRES=gres/gpu=16'; do
  # shellcheck disable=SC2086  # Words.
  sacctmgr -i $command > /dev/null || true
done
associations=format=User,DefaultAccount,Cluster,Account,Partition,DefaultQOS,QOS,MaxWall,MaxTRES,MaxJobs,MaxSubmit,GrpTRES
record acct-user sacctmgr -nP show user where name=root withassoc "$associations"
record acct-no-user sacctmgr -nP show user where name=nobody withassoc "$associations"
kill "$(cat "$work/acct/slurmdbd.pid")"; while [ -e "$work/acct/slurmdbd.pid" ]; do sleep 0.2; done
record acct-away-history "${history[@]}"
record acct-away-qos sacctmgr -nP show qos \
  format=Name,Priority,MaxWall,MaxTRES,MaxTRESPU,MaxJobsPU,MaxSubmitPU,GrpTRES,Flags,PreemptMode
