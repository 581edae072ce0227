"""What a job does to its network: prune, recover, train. Each takes the job's network and leaves a better one."""
