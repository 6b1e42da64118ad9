"""Medical image segmentation that runs anywhere: Med-NCA, neural cellular automata."""

__version__ = "0.1.0"
