"""Proximal policy optimisation (Schulman et al. 2017) for language models; `trainer.py` is where to begin."""
