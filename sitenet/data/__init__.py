"""Tables of crystals with properties: opened, read, prepared and split."""

from sitenet.data.dataset import Dataset as Dataset
from sitenet.data.dataset import LeftOut as LeftOut
from sitenet.data.dataset import Preparation as Preparation
from sitenet.data.dataset import Split as Split
from sitenet.data.dataset import read as read
from sitenet.data.dataset import split as split
