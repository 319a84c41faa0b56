"""Slurm through submitit: batch files, chains of jobs, and what its commands say."""
