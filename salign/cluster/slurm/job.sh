# How a job of salign begins and ends: in the batch files of a launch, and read by slurm/env.sh.
# SALIGN_JOBS is a folder on the shared file system, for what a start leaves to the next one.

salign_task=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID} # the id alone may mean the whole array
salign_task=${salign_task:-$SLURM_JOB_ID}
# A process that fails with an error makes this file; Python that begins to work removes the other.
export SALIGN_FAILED=$SALIGN_JOBS/$SLURM_JOB_ID.failed SALIGN_STARTS=$SALIGN_JOBS/$SLURM_JOB_ID.starts

salign_fail() { # CODE WHY
  echo "error: $2" >&2
  touch "$SALIGN_FAILED" 2>/dev/null
  exit "$1"
}

salign_requeue() { # until the controller takes it, which may be starting again; then it ends this script
  local pause
  for pause in 2 5 10 20 40 80; do
    scontrol requeue "$salign_task" && return
    sleep "$pause"
  done
  return 1
}

salign_names() { scontrol show hostnames "${1:-}" 2>/dev/null | sort -u; }

# Puts the job back into the queue, to be started on other nodes, because it could not begin on some: on three at most.
salign_elsewhere() { # CODE WHY NODES
  local excluded ours num_starts others pause
  excluded=$(squeue -h -j "$salign_task" -o %x 2>/dev/null)
  excluded=${excluded#(null)}
  ours=$(comm -23 <(salign_names "$excluded") <(salign_names "${SALIGN_EXCLUDE:-}") | paste -sd, -)
  num_starts=$(cat "$SALIGN_STARTS" 2>/dev/null | wc -l)
  [ "$num_starts" -lt 3 ] && [ "$(salign_names "$ours" | wc -l)" -lt 2 ] ||
    salign_fail "$1" "$2 It could not begin on ${ours:+$ours,}${3:-$SLURM_JOB_NODELIST}; look at the lines above, then launch again."
  excluded=${excluded:+$excluded,}${3:-}
  excluded=${excluded%,}
  others=$(comm -23 <(sinfo -h -N -p "$SLURM_JOB_PARTITION" -o %N 2>/dev/null | sort -u) <(salign_names "$excluded") | wc -l)
  if [ "$others" -lt "${SLURM_JOB_NUM_NODES:-1}" ]; then # there are no others: the same again, if that can help
    [ -d "$SALIGN_JOBS" ] || salign_fail "$1" "$2 There are no other nodes."
    excluded=
  fi
  echo "$2 It is tried on another node." >&2
  trap '' TERM # the nodes can only be named once the job is back in the queue, which ends this script
  salign_requeue || exit "$1"
  for pause in 0.2 0.5 1 1 1; do
    [ -n "$excluded" ] || break
    sleep "$pause"
    scontrol update "JobId=$salign_task" "ExcNodeList=$excluded" && break
  done
  exit "$1"
}

salign_begin() { # before anything else
  local blind=
  [ -d "$SALIGN_JOBS" ] || blind=$SLURMD_NODENAME
  if [ "${SLURM_JOB_NUM_NODES:-1}" -gt 1 ] && [ -z "$blind" ]; then
    blind=$(srun --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --chdir=/ --mpi=none \
      sh -c '[ -d "$1" ] || echo "$SLURMD_NODENAME"' sh "$SALIGN_JOBS" 2>/dev/null | paste -sd, -)
  fi
  # EX_NOHOST: what is said here is seen by nobody where the log cannot be written.
  [ -z "$blind" ] || salign_elsewhere 68 "$SALIGN_JOBS is not to be seen on $blind." "$blind"
  rm -f "$SALIGN_FAILED"
  echo "$SLURM_JOB_NODELIST" >>"$SALIGN_STARTS"
}

salign_cannot_begin() { # CODE WHY
  local node=
  [ "${SLURM_JOB_NUM_NODES:-1}" -gt 1 ] || node=$SLURMD_NODENAME
  salign_elsewhere "$1" "$2" "$node"
}

salign_finish() { # CODE: of srun
  [ "$1" = 0 ] || [ ! -e "$SALIGN_STARTS" ] || salign_cannot_begin "$1" "Python did not begin to work (exit code $1)."
  # It was told to stop, or a signal ended it (KILL, USR2, TERM), and no process failed with an error. A cancelled job's
  # script is ended with it, and does not come here.
  case $1 in 75 | 137 | 140 | 143) [ -e "$SALIGN_FAILED" ] || salign_requeue ;; esac
  exit "$1"
}
