"""Is it learning? What a frozen encoder knows of labelled images."""
from .probes import Probes as Probes
