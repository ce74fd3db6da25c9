"""One run, stage by stage: verify and its checks, bisect, mutation, fuzz, doctor."""
