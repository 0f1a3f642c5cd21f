"""What trainings share: rows, checks beforehand, saving, reward models, rewards, and our own PPO in `ppo/`."""
