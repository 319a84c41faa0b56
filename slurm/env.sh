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
# back into the queue and goes on from its journal or checkpoint; one that cannot begin is tried on three nodes.
SALIGN_JOBS=$PWD/.salign-jobs
mkdir -p "$SALIGN_JOBS"
source salign/cluster/slurm/job.sh
salign_begin
finish() { salign_finish "$1"; }
