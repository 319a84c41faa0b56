# What the batch files of this folder begin with. This is the one place to adapt to a site; `sbatch` is to be called in
# the checkout (or with SALIGN_HOME=checkout), for the files name jobs/*.py relative to it.
#
# Modules:          module load python/3.11 cuda openmpi
# A virtualenv:     source /path/to/venv/bin/activate
# A container:      PYTHON="apptainer exec --nv /path/to/image.sif python"

cd "${SALIGN_HOME:-$SLURM_SUBMIT_DIR}" || exit 2
if [ ! -f jobs/launch.py ]; then
  echo "error: $PWD is no checkout of salign; call sbatch in it, or set SALIGN_HOME" >&2
  exit 2
fi
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
if [ $# -eq 0 ]; then
  echo "error: name a config or a run's folder: sbatch ${0##*/} CONFIG.yaml ..." >&2
  exit 2
fi

# srun takes over sbatch's cores (it does not by itself since Slurm 22.05), and threads are as many as cores.
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}"

# Where ranks run together, one that ends in an error ends the others. (srun's own --unbuffered would pretend a terminal.)
export PYTHONUNBUFFERED=1
run() { srun --kill-on-bad-exit=1 "$@"; }

# A job that was told to stop (exit code 75: USR2, before the time limit or a preemption) or that a signal ended is put
# back into the queue and goes on from its journal or checkpoint. One that failed of an error leaves a flag and stays so.
export SALIGN_FAILED=$PWD/.salign-failed-$SLURM_JOB_ID
rm -f "$SALIGN_FAILED"
# Python removes this file when it begins: a job whose Python never does is not started again without end.
export SALIGN_STARTS=$PWD/.salign-starts-$SLURM_JOB_ID
echo start >> "$SALIGN_STARTS"
if [ "$(wc -l < "$SALIGN_STARTS")" -gt 4 ]; then
  rm -f "$SALIGN_STARTS"
  echo "error: the job was started 4 times, and Python did not begin to work; look at the lines above" >&2
  exit 1
fi
finish() {
  # A controller that is starting again does not answer for a while.
  case $1 in 75 | 137 | 140 | 143)
    [ -e "$SALIGN_FAILED" ] || for pause in 2 5 10 20 40 80; do
      scontrol requeue "$SLURM_JOB_ID" && break
      sleep $pause
    done ;;
  esac
  rm -f "$SALIGN_FAILED"
  exit "$1"
}
