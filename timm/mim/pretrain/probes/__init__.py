"""Evaluate a frozen encoder with simple classifiers on labelled images."""
from .probes import Probes as Probes
