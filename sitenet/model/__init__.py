"""Site-Net as a torch module, ensembles of it, checkpoints and calibration."""

from sitenet.model.sitenet import SiteNet as SiteNet
from sitenet.model.sitenet import Target as Target
