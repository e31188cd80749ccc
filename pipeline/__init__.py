"""Distributed training and bulk generation of denoising diffusion models on Ray."""

__version__ = "0.1.0"
