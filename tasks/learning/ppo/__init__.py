"""The phases of a PPO iteration."""
